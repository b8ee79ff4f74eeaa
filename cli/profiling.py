"""``onnxcomp profile``: where a model spends its time, and how much faster it is than another one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import click

from onnxcomp.cli import talk
from onnxcomp.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxcomp.data import Feeds
    from onnxcomp.data.inputs import Batch
    from onnxcomp.runtime.measuring import Effort
    from onnxcomp.runtime.pairprofile import PairProfile
    from onnxcomp.runtime.profiling import Profile
    from onnxcomp.runtime.settings import SessionSettings

__all__ = ["profile"]

_BUDGET_S = 5.0  # for one model; two models get twice as much


@click.command(short_help="Where a model spends its time, layer by layer, and against another model.")
@click.argument("model")
@click.option("--against", metavar="BASE", help="Also profile BASE, and say how much faster MODEL is.")
@click.option("--data", metavar="D", help="Inputs: .npz, .npy, a folder of images, or module:function.  [else made up]")
@click.option("--batch", metavar="N", type=click.IntRange(1), help="Samples in a run.  [default: 1]")
@click.option("--runs", metavar="N", type=int, default=500, show_default=True, help="At most N runs of each kind.")
@click.option("--warmup", metavar="N", type=int, default=10, show_default=True, help="Runs before any is measured.")
@click.option("--budget", metavar="S", type=float, help="Seconds to measure.  [default: 5; with --against 10]")
@click.option(
    "--optimization",
    type=click.Choice(["all", "extended", "basic", "off"]),
    default="all",
    show_default=True,
    help="How far the runtime rewrites the graph.",
)
@click.option("--provider", metavar="P", default="cpu", show_default=True, help="Execution provider.")
@click.option(
    "--session-option", "options", metavar="KEY=VALUE", multiple=True, help="Entry of the session's configuration."
)
@click.option("--top", metavar="N", type=click.IntRange(1), default=20, show_default=True, help="List N layers.")
@click.option("--report", "reports", metavar="FILE", multiple=True, help="Write .json, .md or .html; may be repeated.")
@talk.data_options
@talk.common
def profile(
    model: str,
    against: str | None,
    data: str | None,
    batch: int | None,
    runs: int,
    warmup: int,
    budget: float | None,
    optimization: Literal["all", "extended", "basic", "off"],
    provider: str,
    options: tuple[str, ...],
    top: int,
    reports: tuple[str, ...],
    preprocess: str | None,
    shapes: tuple[str, ...],
    threads: int | None,
    seed: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Time every kernel that the runtime makes of MODEL, and name it by nodes of the model that it was made of.

    With --against, both are run in turns: the speed-up has an interval, and where that is too wide nothing is
    concluded. The exit code is 0 whatever is measured; to fail a build, use check.

    \b
    onnxcomp profile small.onnx
    onnxcomp profile small.onnx --against model.onnx --threads 4 --report profile.html
    """
    from onnxcomp.report.profileview import profile_document, profile_view
    from onnxcomp.report.writing import check_report_path
    from onnxcomp.runtime.measuring import Effort
    from onnxcomp.runtime.settings import SessionSettings, parse_entries

    paths = [path for path in (model, against) if path is not None]
    for path in paths:
        talk.check_model(path)
    for report in reports:
        check_report_path(report, paths)
    effort = Effort(runs, warmup, _BUDGET_S * len(paths) if budget is None else budget)
    settings = SessionSettings(threads or 1, 1, optimization, provider, parse_entries(options))
    source = _Source(data, preprocess, talk.parse_shapes(shapes), batch, seed or 0)
    with talk.progress_bar(2, quiet) as progress:
        progress("load")
        feeds, feed, measured = _prepare(model, against, source)
        progress("profile")
        found = measured(settings, effort)
    document = profile_document(
        found,
        model=model,
        against=against,
        data=feeds.describe(),
        synthetic=feeds.synthetic,
        inputs={name: value.shape for name, value in feed.items()},
        seed=source.seed,
    )
    talk.show(
        document,
        lambda full: profile_view(document, full=full, top=None if full else top),
        reports,
        as_json,
        quiet,
    )


@dataclass(frozen=True)
class _Source:
    """Where inputs are from, as the flags say."""

    data: str | None
    preprocess: str | None
    shapes: dict[str, tuple[int, ...]]
    batch: int | None
    seed: int

    def feeds(self, model: ir.Model) -> Feeds:
        from onnxcomp.data import Preprocess, open_feeds, synthetic_feeds

        if self.data is None:
            return synthetic_feeds(model, self.seed, self.batch or 1, shapes=self.shapes)
        chosen = None if self.preprocess is None else Preprocess.parse(self.preprocess)
        return open_feeds(self.data, model, preprocess=chosen, shapes=self.shapes).unlabelled()

    def feed(self, feeds: Feeds) -> Batch:
        for wanted in feeds.inputs:
            fixed = wanted.fixed_batch
            if self.batch is not None and wanted.shape != () and fixed not in (None, self.batch):
                raise InputError(
                    f"--batch {self.batch}: input {wanted.name!r} is {wanted}, a batch of {fixed} always;"
                    " leave the flag out, or export the model with a free first axis"
                )
        return feeds.first(self.batch or 1)


def _prepare(
    model: str, against: str | None, source: _Source
) -> tuple[Feeds, Batch, Callable[[SessionSettings, Effort], Profile | PairProfile]]:
    """Load what is profiled and what it is fed; return what then measures it."""
    from onnxcomp import modelio
    from onnxcomp.comparison.reading import check_inputs
    from onnxcomp.runtime.pairprofile import profile_pair
    from onnxcomp.runtime.profiling import profile_model

    own = modelio.load(model)
    base = None if against is None else modelio.load(against)
    feeds = source.feeds(own if base is None else check_inputs(base, own))
    feed = source.feed(feeds)

    def measured(settings: SessionSettings, effort: Effort) -> Profile | PairProfile:
        if base is None:
            return profile_model(own, feed, settings=settings, effort=effort)
        return profile_pair(base, own, feed, settings=settings, effort=effort, seed=source.seed)

    return feeds, feed, measured
