"""A hand on a window of another process: mouse, keys, clipboard and the close button, through xdotool and X itself.

Where things are is asked of the same window, opened from the source on the same screen and taken down again.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import subprocess
import time
import tkinter
from pathlib import Path
from typing import cast

import lunobiz as lb
import screen as sc

Spot = tuple[int, int]


class _ClientMessage(ctypes.Structure):
    """XClientMessageEvent, padded to the size of XEvent."""

    _fields_ = (
        ("kind", ctypes.c_int), ("serial", ctypes.c_ulong), ("is_sent", ctypes.c_int), ("display", ctypes.c_void_p),
        ("window", ctypes.c_ulong), ("message", ctypes.c_ulong), ("format", ctypes.c_int),
        ("values", ctypes.c_long * 5), ("padding", ctypes.c_long * 24),
    )  # fmt: skip


def ask_to_close(window: str) -> None:
    """What a window manager sends when the close button is pressed; there is none on a test's screen."""
    x11 = ctypes.CDLL(ctypes.util.find_library("X11"))
    x11.XOpenDisplay.restype = ctypes.c_void_p
    x11.XInternAtom.restype = ctypes.c_ulong
    display = ctypes.c_void_p(x11.XOpenDisplay(None))
    assert display.value
    names = [x11.XInternAtom(display, name, 0) for name in (b"WM_PROTOCOLS", b"WM_DELETE_WINDOW")]
    event = _ClientMessage(kind=33, window=int(window), message=names[0], format=32)
    event.values[0] = names[1]
    assert x11.XSendEvent(display, ctypes.c_ulong(int(window)), 0, ctypes.c_long(0), ctypes.byref(event))
    x11.XCloseDisplay(display)


def windows_of(name: str) -> list[str]:
    """The visible windows with this in their title."""
    found = subprocess.run(["xdotool", "search", "--onlyvisible", "--name", name], capture_output=True, text=True,
                           check=False)  # fmt: skip
    return found.stdout.split()


class Hand:
    """Clicks and keys for one window; without a window manager it must be given the focus first."""

    def __init__(self, window: str, spots: dict[str, Spot]) -> None:
        self.window, self.spots = window, spots

    def _do(self, *words: str) -> None:
        subprocess.run(["xdotool", *words], check=True, capture_output=True)
        time.sleep(0.3)

    def press(self, key: str) -> None:
        """A key."""
        self._do("windowfocus", self.window)
        self._do("key", "--window", self.window, key)

    def click(self, name: str) -> None:
        """The left button on a named spot."""
        self._do("windowfocus", self.window)
        x, y = self.spots[name]
        self._do("mousemove", "--window", self.window, str(x), str(y))
        self._do("click", "1")

    def write(self, text: str) -> None:
        """Text for the field that was clicked."""
        self._do("type", "--window", self.window, "--delay", "20", text)


def clipboard() -> str:
    """What lies in the clipboard; "" while there is nothing."""
    root = tkinter.Tk()
    root.withdraw()
    try:
        return str(root.clipboard_get())
    except tkinter.TclError:
        return ""
    finally:
        root.destroy()


def spots_of_the_window(folder: Path) -> dict[str, Spot]:
    """Where the buttons, tabs, fields and tables are in the window of a demo without banners."""
    worker = sc.FakeWorker(sc.news(is_empty=True, mode=lb.Mode.DEMO))
    window = sc.open_dashboard(worker, folder, mode=lb.Mode.DEMO, theme="")
    try:
        sc.settle(window.root, 0.5)
        screen = window.screen
        found = {"start": _middle(window.root, screen.actions.start)}
        for number, name in ((0, "dashboard tab"), (1, "backtest tab")):
            found[name] = _tab(window.root, screen.tabs, number)
        screen.tabs.select(1)
        screen.backtest.open_run(lb.SavedRun(1, sc.NOON, "backtest", lb.canonical(sc.run_json())))
        sc.settle(window.root, 0.5)
        form, metrics = screen.backtest.form, screen.backtest.result.metrics
        found |= {"folder": _middle(window.root, form._folder_entry), "run": _middle(window.root, screen.backtest.run)}
        box = cast("tuple[int, int, int, int]", metrics.tree.bbox(metrics.keys[3]))
        left, top = _corner(window.root, metrics.tree)
        return found | {"result": (left + box[0] + 30, top + box[1] + box[3] // 2)}
    finally:
        window.end()


def _corner(root: tkinter.Misc, widget: tkinter.Misc) -> Spot:
    return widget.winfo_rootx() - root.winfo_rootx(), widget.winfo_rooty() - root.winfo_rooty()


def _middle(root: tkinter.Misc, widget: tkinter.Misc) -> Spot:
    left, top = _corner(root, widget)
    return left + widget.winfo_width() // 2, top + widget.winfo_height() // 2


def _tab(root: tkinter.Misc, tabs: tkinter.Misc, number: int) -> Spot:
    """The middle of the label of a tab: what answers to its number."""
    hits = [(x, y) for y in range(2, 40, 4) for x in range(0, tabs.winfo_width(), 8)
            if str(tabs.tk.call(tabs, "index", f"@{x},{y}")) == str(number)]  # fmt: skip
    left, top = _corner(root, tabs)
    x, y = hits[len(hits) // 2]
    return left + x, top + y
