"""The rules of works A and C as a strategy of freqtrade."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import talib.abstract as ta
from freqtrade.strategy import IStrategy, stoploss_from_absolute
from pandas import DataFrame

CANDLE = timedelta(minutes=5)
RULE = (20, 10, 2.0)  # candles of entry and exit channel, stop in ranges
WARM_UP, RISK, LARGEST, UNIT_PRICE = 200, 0.01, 0.32, 1000.0


class Breakout(IStrategy):
    """Buy above the top, leave below the floor, stop at a price fixed at the signal."""

    INTERFACE_VERSION = 3
    timeframe, startup_candle_count, can_short = "5m", 200, False
    minimal_roi = {}  # noqa: RUF012 - the library's own form
    stoploss, use_custom_stoploss, use_exit_signal = -0.99, True, True
    is_account = False
    _stops: dict[str, dict[datetime, float]] = {}  # noqa: RUF012 - one strategy, one run

    def populate_indicators(self, dataframe: DataFrame, metadata: dict) -> DataFrame:
        """Channels and range."""
        dataframe["top"] = dataframe["high"].rolling(RULE[0]).max().shift()
        dataframe["floor"] = dataframe["low"].rolling(RULE[1]).min().shift()
        dataframe["range"] = ta.ATR(dataframe, timeperiod=14)
        return dataframe

    def populate_entry_trend(self, dataframe: DataFrame, metadata: dict) -> DataFrame:
        """Entries, and the stop of each under the time of the candle after it."""
        enters = (dataframe["close"] > dataframe["top"]) & (np.arange(len(dataframe)) >= WARM_UP)
        dataframe["enter_long"] = enters.astype(int)
        wanted = dataframe[enters]
        stops = (wanted["close"] - RULE[2] * wanted["range"]).tolist()
        self._stops[metadata["pair"]] = dict(zip((wanted["date"] + CANDLE).dt.to_pydatetime(), stops, strict=True))
        return dataframe

    def populate_exit_trend(self, dataframe: DataFrame, metadata: dict) -> DataFrame:
        """Exits."""
        dataframe["exit_long"] = (dataframe["close"] < dataframe["floor"]).astype(int)
        return dataframe

    def custom_stoploss(self, pair, trade, current_time, current_rate, current_profit, after_fill, **kwargs):
        """Set once, from the first candle on; the library asks for a share of the price."""
        if trade.stop_loss > 0.5 * trade.open_rate:
            return None
        stop = self._stops[pair].get(trade.open_date_utc)
        return None if stop is None else stoploss_from_absolute(stop, current_rate, is_short=False)

    def custom_stake_amount(self, pair, current_time, current_rate, proposed_stake, min_stake, max_stake, **kwargs):
        """About one unit, or what the risk allows."""
        stop = self._stops[pair].get(current_time)
        if not self.is_account or stop is None:
            return UNIT_PRICE
        worth = self.wallets.get_total_stake_amount()
        distance = max(current_rate - stop, 1e-9)
        return min(RISK * worth / distance * current_rate, LARGEST * worth, max_stake)
