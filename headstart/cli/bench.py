"""`headstart bench`: measure pipelines against each other on the waveform."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperGroup

from headstart.cli.out import try_out
from headstart.cli.repeated import repeat_option
from headstart.errors import HeadstartError, UsageError

if TYPE_CHECKING:
    from headstart.bench.conversation.results import Run


_FILE_WIDTH = 160


class BenchGroup(TyperGroup):
    """Lets one `--arm` take several pipelines."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give each pipeline behind `--arm` an option of its own."""
        return super().parse_args(ctx, repeat_option(args, "--arm"))


app = typer.Typer(
    cls=BenchGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def bench(
    ctx: typer.Context,
    utterances: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Holds manifest.jsonl and the recordings it names."),
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONFIG...",
            help="The pipelines: files, or names of those that ship. Or files that name a worker.",
        ),
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="How often each utterance is spoken.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where results.json, report.md, report.html and the runs go."
        ),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Only this utterance; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order of the runs and the intervals.")] = 0,
) -> None:
    """Speak recorded utterances to several pipelines and measure the wait for the answer.

    Each pipeline runs in a process of its own, one at a time, in real time. The wait is measured
    on the recording, from the true end of the user's voice to the first audible sample of the bot.

    [bold]Examples[/bold]

      headstart bench --utterances samples/speech --arm local early stock --out out/bench

      headstart bench --utterances DIR --arm simulated-cloud simulated-cloud-early --out out/sim

      headstart bench compare old/results.json new/results.json --max-regression 5
    """
    if ctx.invoked_subcommand is not None:
        return
    for option, value in (("--utterances", utterances), ("--arm", arm), ("--out", out)):
        if not value:
            raise typer.BadParameter("is needed", param_hint=option)
    assert utterances is not None and arm is not None and out is not None
    _bench(utterances, arm, repeat, out, only or [], seed)


def _bench(
    utterances: Path, arm: list[str], repeat: int, out: Path, only: list[str], seed: int
) -> None:
    from headstart import assets
    from headstart.bench.conversation.arms import read_arms
    from headstart.bench.conversation.report import print_summary, write_reports
    from headstart.bench.conversation.run import Plan, run_benchmark
    from headstart.bench.conversation.utterances import read_utterances
    from headstart.cli.models import pull_with_progress

    if (out / "results.json").exists():
        raise UsageError(f"{out}: holds results already; give another --out")
    found = read_utterances(utterances, only)
    arms = read_arms(arm)
    try_out(out, "results.json")
    missing = [name for one in arms for name in one.assets if assets.find(name) is None]
    if missing:
        pull_with_progress(list(dict.fromkeys(missing)))
    command = "headstart " + shlex.join(sys.argv[1:])
    plan = Plan(arms, found, repeat, seed, out, command)

    console = Console(stderr=True)
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    width = max(len(one.name) for one in arms)
    with bars:
        bar = bars.add_task("starting", total=len(plan.order()))

        def on_warm_up(name: str) -> None:
            bars.update(bar, description=f"loading {name}")
            if not console.is_terminal:
                console.print(f"loading {name}")

        def on_run(run: Run) -> None:
            bars.update(bar, advance=1, description=f"{run.arm}: {run.utterance}")
            bars.print(f"{run.arm:<{width}}  {run.utterance:<16} {_outcome(run)}", highlight=False)

        results = run_benchmark(plan, on_warm_up=on_warm_up, on_run=on_run)
    write_reports(results, out)
    # What is not shown but kept has room for all columns.
    print_summary(results, Console() if sys.stdout.isatty() else Console(width=_FILE_WIDTH))
    typer.echo(f"wrote {out}/results.json, report.md and report.html")
    if not results.complete:
        raise KeyboardInterrupt


def _outcome(run: Run) -> str:
    wait = "" if run.voice_to_voice_s is None else f"{run.voice_to_voice_s:6.3f} s"
    return f"{wait:<8}  {', '.join(run.failures)}".rstrip()


@app.command("compare")
def compare(
    before: Annotated[Path, typer.Argument(help="Earlier results.json, or its folder.")],
    after: Annotated[Path, typer.Argument(help="Later results.json, or its folder.")],
    max_regression: Annotated[
        float | None,
        typer.Option(
            metavar="PERCENT", help="Exit with code 1 if an arm's wait grew by more, or fails more."
        ),
    ] = None,
) -> None:
    """Compare two benchmarks of the same arms, utterance by utterance."""
    from headstart.bench.conversation.regression import changes
    from headstart.bench.conversation.results import Results

    table = Table("arm", "pairs", "failed before", "after", "change (95 %)", box=None)
    worse = []
    for change in changes(Results.read(before), Results.read(after)):
        ratio, told = change.waits.ratio, "nothing to compare"
        if ratio is not None:
            low, high = 100 * (ratio.low - 1), 100 * (ratio.high - 1)
            told = f"{100 * (ratio.value - 1):+.1f} % ({low:+.1f} to {high:+.1f})"
        table.add_row(
            change.arm,
            str(change.waits.n),
            str(change.failed_before),
            str(change.failed_after),
            told,
        )
        if max_regression is not None and change.exceeds(max_regression):
            worse.append(change.arm)
    Console().print(table)
    if worse:
        raise HeadstartError(f"worse than {max_regression:g} % allow: {', '.join(worse)}")


@app.command("load")
def load(
    config: Annotated[
        list[str], typer.Argument(help="The pipelines: files, or names of those that ship.")
    ],
    utterances: Annotated[
        Path, typer.Option(metavar="DIR", help="Holds manifest.jsonl and the recordings it names.")
    ],
    sessions: Annotated[
        str | None,
        typer.Option(
            metavar="N,N...",
            help="How many conversations at once. [default: 1, 2, 4, ... until p95 breaks]",
        ),
    ] = None,
    pause: Annotated[
        float | None,
        typer.Option(
            metavar="SECS",
            min=0.0,
            help="Wait for no answer, only so long: for pipelines that have none.",
        ),
    ] = None,
    break_at: Annotated[
        float,
        typer.Option(min=1.0, help="p95 is broken at so many times that of the fewest sessions."),
    ] = 2.0,
    repeat: Annotated[int, typer.Option(min=1, help="Rounds of each, taken together.")] = 1,
    block: Annotated[
        int, typer.Option(min=1, help="Utterances after which it is the next pipeline's turn.")
    ] = 4,
    only: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Only this utterance; may be repeated.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where results.json, report.md and load.svg go."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order of the arms.")] = 0,
) -> None:
    """Hold several conversations at once and measure what each costs and suffers.

    With the same number of sessions, the pipelines take turns after every few utterances, in
    random order; each time in a process of its own.

    [bold]Examples[/bold]

      headstart bench load local early --utterances samples/speech --out out/load

      headstart bench load local stock --utterances samples/speech --sessions 1,2 --repeat 3
    """
    from headstart.bench.conversation.utterances import read_utterances
    from headstart.bench.load.run import LoadPlan, run_load

    if out is not None and (out / "results.json").exists():
        raise UsageError(f"{out}: holds results already; give another --out")
    found = read_utterances(utterances, only)
    if out is not None:
        try_out(out, "results.json")
    plan = LoadPlan(
        configs=config,
        utterances={name: (path, one.speech_end_s) for name, (one, path) in found.items()},
        block=block,
        steps=_steps(sessions),
        pause_s=pause,
        break_at=break_at,
        rounds=repeat,
        seed=seed,
        command="headstart " + shlex.join(sys.argv[1:]),
    )
    with Console(stderr=True).status("") as status:
        results = run_load(plan, on_measure=status.update)
    if out is not None:
        results.save(out)
    results.print(Console() if sys.stdout.isatty() else Console(width=_FILE_WIDTH))
    if not results.complete:
        raise KeyboardInterrupt


def _steps(sessions: str | None) -> list[int] | None:
    if sessions is None:
        return None
    try:
        steps = [int(number) for number in sessions.split(",")]
    except ValueError:
        steps = [0]
    if min(steps) < 1:
        raise UsageError(f"--sessions {sessions}: should be whole numbers, as in 1,2,4")
    return steps
