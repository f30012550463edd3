"""One run of the command: what was asked for, and where the answer goes."""

import argparse
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemoneye_cli.exit_code import ExitCode
from daemoneye_cli.output import Output
from daemoneye_cli.session import OperatorSession
from daemoneye_mesh.directories import find_runtime_dir
from daemoneye_mesh.layout import DEFAULT_TRUST_DOMAIN, RuntimeLayout

__all__ = ["Command", "Invocation", "Options"]

TRUST_DOMAIN_VARIABLE = "DAEMONEYE_TRUST_DOMAIN"


@dataclass(frozen=True, slots=True)
class Options:
    """The options that every command has."""

    runtime_dir: Path | None
    timeout_s: float | None
    token_file: Path | None

    @property
    def layout(self) -> RuntimeLayout:
        """What lies where in the mesh that is asked."""
        return self.layout_of(self.runtime_dir or find_runtime_dir())

    def layout_of(self, runtime_dir: Path) -> RuntimeLayout:
        """Returns the layout below a runtime dir, in the trust domain of the environment."""
        domain = os.environ.get(TRUST_DOMAIN_VARIABLE) or DEFAULT_TRUST_DOMAIN
        return RuntimeLayout(runtime_dir, domain)


@dataclass(frozen=True, slots=True)
class Invocation:
    """One run of one command."""

    arguments: argparse.Namespace
    options: Options
    output: Output

    def session(self) -> OperatorSession:
        """Returns a session with the mesh; use it with ``async with``."""
        return OperatorSession(
            self.options.layout,
            token_file=self.options.token_file,
            timeout_s=self.options.timeout_s,
        )

    def argument(self, name: str, default: Any = None) -> Any:
        """Returns an argument of the command; ``default`` when it was not given."""
        value = getattr(self.arguments, name, None)
        return default if value is None else value


Command = Callable[[Invocation], Awaitable[ExitCode]]
