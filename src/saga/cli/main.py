"""Where the command line begins and where errors become exit codes.

0 all is well; 1 something failed that is not the caller's fault; 2 a bad flag, file or value (one line says which, and
what would be right); 130 interrupted. It refuses to know what the commands do; they import what they need when they
run, so that `saga --help` is instant.
"""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from saga import __version__
from saga.cli.cache import cache
from saga.cli.calibrate import calibrate
from saga.cli.demo import demo
from saga.cli.engine import engine
from saga.cli.explain import explain
from saga.cli.front import front
from saga.cli.paper import paper
from saga.cli.presets import presets_app
from saga.cli.replay import replay
from saga.cli.serve import serve
from saga.cli.sim import sim
from saga.cli.study import study
from saga.cli.top import top
from saga.cli.worker import worker
from saga.cli.workflow import workflow
from saga.cli.workload import workload_app
from saga.errors import SagaError, UsageError

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="saga",
    help="Schedule AI-agent workflows on fleets of LLM engines; try policies on your own traces first.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command()(demo)
app.command()(sim)
app.command()(cache)
app.command()(paper)
app.command()(study)
app.command()(explain)
app.add_typer(presets_app, name="presets")
app.add_typer(workload_app, name="workload")
app.command()(workflow)
app.command()(serve)
app.command()(top)
app.command()(engine)
app.command()(calibrate)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(worker)
app.command(hidden=True)(front)
app.command()(replay)


def _show_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        typer.echo(f"saga {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Schedule AI-agent workflows on fleets of LLM engines; try policies on your own traces first.

    Begin with `saga demo`, or compare presets on a workload:

        saga sim --workload swe_bench --preset vllm_apc,saga --oversubscription 1.2 --tasks 200
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command line and leave the process with the right exit code; an expected error is one line."""
    try:
        code = app(prog_name="saga", standalone_mode=False)
    except UsageError as error:
        _leave(error, EXIT_USAGE)
    except SagaError as error:
        _leave(error, EXIT_FAILED)
    except (KeyboardInterrupt, typer.Abort):
        _leave("interrupted", EXIT_INTERRUPTED)
    except Exception as error:
        if not hasattr(error, "format_message"):  # what typer raises for a flag it does not know
            raise
        _leave(error.format_message(), EXIT_USAGE)
    sys.exit(code if isinstance(code, int) else 0)


def _leave(message: object, code: int) -> NoReturn:
    """One line on standard error, then out."""
    sys.stderr.write("saga: " + " ".join(str(message).split()) + "\n")
    sys.exit(code)
