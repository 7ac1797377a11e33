"""Works A and C in freqtrade's backtesting, on candles in memory and a market list of our own: no network.

Work C is without the daily cap: the library marks no equity within a day. A is counted per unit, from the prices.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import pandas as pd
import works as w
from freqtrade.enums import CandleType, RunMode
from freqtrade.exchange.binance import Binance
from freqtrade.optimize import backtesting
from market import Candles
from serve import Run, serve
from works import Outcome, Rule

logging.disable(logging.CRITICAL)
PAIRS = ("ONE/USDT", "TWO/USDT", "SIX/USDT", "TEN/USDT", "NIL/USDT")


def market(pair: str) -> dict[str, object]:
    """A market as the exchange library lists it."""
    base, quote = pair.split("/")
    free = {"min": None, "max": None}
    return {
        "id": base + quote, "symbol": pair, "base": base, "quote": quote, "settle": None, "type": "spot", "spot": True,
        "margin": False, "swap": False, "future": False, "contract": False, "contractSize": None, "active": True,
        "linear": None, "inverse": None, "taker": w.FEE, "maker": w.FEE, "info": {},
        "precision": {"amount": 1e-8, "price": 1e-6, "cost": 1e-8},
        "limits": {"amount": {"min": 1e-8, "max": 1e12}, "price": free, "cost": free, "leverage": free},
    }


def settings(pairs: tuple[str, ...], folder: Path) -> dict[str, object]:
    """What the library wants to be told."""
    pricing = {"price_side": "same", "use_order_book": False, "order_book_top": 1}
    return {
        "runmode": RunMode.BACKTEST, "dry_run": True, "dry_run_wallet": w.CASH, "stake_currency": "USDT",
        "stake_amount": 1000, "max_open_trades": w.PLACES if len(pairs) > 1 else 1, "timeframe": "5m", "fee": w.FEE,
        "strategy": "Breakout", "strategy_path": Path(__file__).parent / "strategies", "user_data_dir": folder,
        "datadir": folder, "export": "none", "exportfilename": folder / "x.json", "trading_mode": "spot",
        "margin_mode": "", "tradable_balance_ratio": 1.0, "last_stake_amount_min_ratio": 0.5,
        "amend_last_stake_amount": False, "pairlists": [{"method": "StaticPairList"}], "entry_pricing": pricing,
        "exit_pricing": pricing, "candle_type_def": CandleType.SPOT, "dataformat_ohlcv": "feather",
        "unfilledtimeout": {"entry": 10, "exit": 10}, "original_config": {}, "internals": {}, "user_config": {},
        "backtest_cache": "none", "enable_protections": False, "freqai": {}, "telegram": {}, "api_server": {},
        "logfile": None, "verbosity": 0, "config_files": [],
        "exchange": {"name": "binance", "key": "", "secret": "", "pair_whitelist": list(pairs), "pair_blacklist": [],
                     "enable_ws": False},
    }


def offline_exchange(config: dict[str, object], pairs: tuple[str, ...]) -> Binance:
    """An exchange whose market list is given and never read again."""
    exchange = Binance(config, validate=False)
    exchange._markets = exchange._api.markets = {pair: market(pair) for pair in pairs}
    exchange.reload_markets = lambda *args, **kwargs: None
    return exchange


def prepare(c: Candles, count: int) -> Run:
    """The library's tables; a run computes the indicators and backtests."""
    pairs = PAIRS[:count]
    config = settings(pairs, Path(tempfile.mkdtemp(prefix="lunobiz-bench-")))
    backtesting.migrate_data = backtesting.validate_config_consistency = lambda *args, **kwargs: None
    tester = backtesting.Backtesting(config, exchange=offline_exchange(config, pairs))
    (strategy,) = tester.strategylist
    tester._set_strategy(strategy)
    tester.available_pairs, tester.price_pair_prec = list(pairs), {}
    strategy.is_account = count > 1
    dates = pd.Series(pd.to_datetime(c.opened, unit="ms", utc=True))
    tables = {pair: pd.DataFrame({"date": dates, "open": c.open[m], "high": c.high[m], "low": c.low[m],
                                  "close": c.close[m], "volume": c.volume[m]}) for m, pair in enumerate(pairs)}

    def run() -> Outcome:
        ready = strategy.advise_all_indicators({pair: table.copy() for pair, table in tables.items()})
        found = tester.backtest(ready, dates.iloc[0].to_pydatetime(), dates.iloc[-1].to_pydatetime())
        trips = found["results"]
        if count > 1:
            return Outcome(len(trips), float(found["final_balance"]) - w.CASH)
        return Outcome(len(trips), float((trips.close_rate * (1 - w.FEE) - trips.open_rate * (1 + w.FEE)).sum()))

    return run


def work_a(c: Candles, rules: tuple[Rule, ...]) -> Run:
    """One market."""
    return prepare(c, 1)


def work_c(c: Candles, rules: tuple[Rule, ...]) -> Run:
    """Five markets, three places."""
    return prepare(c, len(c.close))


if __name__ == "__main__":
    serve("freqtrade", {"A": work_a, "C": work_c})
