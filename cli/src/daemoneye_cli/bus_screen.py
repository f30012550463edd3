"""A screen that is redrawn in place on a terminal, and frames below one another elsewhere.

Invariant: whatever ends the view, the terminal is left as it was; and no frame is taller than it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.control import Control

from daemoneye_cli.output import Output

__all__ = ["Screen", "is_redrawn", "open_screen"]

_HOME = "\x1b[H"
_ERASE_LINE_END = "\x1b[K"
_ERASE_BELOW = "\x1b[J"


def is_redrawn(output: Output) -> bool:
    """Whether the answer goes to a terminal that can move its cursor."""
    return output.is_table and output.out.file.isatty() and not output.out.is_dumb_terminal


class Screen:
    """Where frames go; see ``open_screen``."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._is_redrawn = is_redrawn(output)
        self._is_first = True

    def show(self, draw: Callable[[], None]) -> None:
        """Shows one frame.

        Args:
            draw: prints the frame to the output.
        """
        if self._is_redrawn:
            self._redraw(draw)
        else:
            if not self._is_first:
                self._output.write("\n")
            draw()
        self._is_first = False
        self._output.flush()

    def _redraw(self, draw: Callable[[], None]) -> None:
        console = self._output.out
        with console.capture() as capture:
            draw()
        lines = capture.get().splitlines()[: max(console.height - 1, 1)]
        body = "".join(f"{line}{_ERASE_LINE_END}\n" for line in lines)
        self._output.write(f"{_HOME}{body}{_ERASE_BELOW}")


@contextmanager
def open_screen(output: Output) -> Iterator[Screen]:
    """Takes the terminal's other screen while frames are shown, and gives it back."""
    if not is_redrawn(output):
        yield Screen(output)
        return
    console = output.out
    console.control(Control.alt_screen(True), Control.show_cursor(False))
    try:
        yield Screen(output)
    finally:
        console.control(Control.show_cursor(True), Control.alt_screen(False))
        output.flush()
