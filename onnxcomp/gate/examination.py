"""The model under examination and its base: each is read, loaded and fed once, however many limits ask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp import modelio
from onnxcomp.data import Feeds, Preprocess, open_feeds, synthetic_feeds
from onnxcomp.errors import DataError, InputError, ModelError
from onnxcomp.evaluate import Quality, evaluate
from onnxcomp.gate.contract import Signature, signature
from onnxcomp.graph.edit import origin_of
from onnxcomp.graph.fixing import fix_shapes
from onnxcomp.runtime.fusion import NodeFate, fusion_proof
from onnxcomp.runtime.latency import Opener
from onnxcomp.runtime.session import open_session, runner
from onnxcomp.targets.target import Target

__all__ = ["Examination", "Given", "Specimen", "Unfit"]


class Unfit(Exception):
    """A limit cannot be looked at; the text says why."""


@dataclass(frozen=True)
class Given:
    """What the user gave besides the models.

    Attributes:
        eval: Labelled data, or None.
        data: Data without labels, or None.
        preprocess: How images become inputs.
        shapes: Concrete shapes of inputs with free sizes.
        threads: Intra-op threads.
        seed: Of made-up inputs and of the bootstrap.
    """

    eval: Any = None
    data: Any = None
    preprocess: Preprocess | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, "tuple[int, ...]"])
    threads: int = 1
    seed: int = 0


class Specimen:
    """A model of the call.

    Attributes:
        path: Its file; None where it came from memory.
        signature: Its inputs and outputs, before any shape was fixed.
        model: The model, its shapes fixed where they were given.
    """

    def __init__(self, source: str | Path | ir.Model) -> None:
        self.path = None if isinstance(source, ir.Model) else Path(source)
        self.model = source.clone() if isinstance(source, ir.Model) else modelio.load(source)
        self.signature: Signature = signature(self.model)
        self._changed = False

    def fix(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Give inputs their shapes; InputError where they do not fit."""
        if shapes:
            fix_shapes(self.model, shapes)
            self._changed = True

    @cached_property
    def bytes(self) -> int:
        """Bytes of the file and its external data; of a model in memory, those of the file it would be."""
        return modelio.serialized_bytes(self.model) if self.path is None else modelio.file_bytes(self.path)

    @cached_property
    def origins(self) -> dict[str, str]:
        """Names of nodes to those in the user's model."""
        return {node.name: origin_of(node) for node in self.model.graph.all_nodes() if node.name}

    def opener(self, feed: Mapping[str, NDArray[Any]], threads: int) -> Opener:
        """Return what opens a session on the file and runs it on `feed`; ModelError where that fails."""
        source: ir.Model | Path = self.model if self.path is None or self._changed else self.path
        return lambda: runner(open_session(source, threads=threads), feed)


class Examination:
    """A model, its base, and what is found of them on the way."""

    def __init__(
        self, model: str | Path | ir.Model, against: str | Path | ir.Model | None, target: Target, given: Given
    ) -> None:
        self.target, self.given = target, given
        self._told = False
        self.own = Specimen(model)
        self.own.fix(given.shapes)
        self.base: Specimen | None = None
        if against is not None:
            try:
                self.base = Specimen(against)
            except ModelError as error:
                raise ModelError(f"--against: {error}") from None
            # A base that the shapes do not fit has another contract, which is what the gate then says.
            with suppress(InputError):
                self.base.fix(given.shapes)

    @cached_property
    def _loaded(self) -> tuple[tuple[NodeFate, ...], str]:
        try:
            fates = fusion_proof(self.own.model, int8_kernels=self.target.name != "ort-x86")
            if not fates:  # nothing to look at, or too large to be: it has to load all the same
                open_session(self.own.model, optimize="basic")
            return fates, ""
        except ModelError as error:
            return (), self._reason(error)

    def _reason(self, error: ModelError) -> str:
        """Why the runtime does not load the model, with its own names: the proof gives the nodes others."""
        try:
            open_session(self.own.model)
        except ModelError as own:
            error = own
        return f"the runtime does not load the model: {str(error).split(': ', 1)[-1]}"

    @property
    def problem(self) -> str:
        """Why the runtime does not load the model; empty where it does."""
        return self._loaded[1]

    @property
    def fates(self) -> tuple[NodeFate, ...] | None:
        """What the runtime of the target makes of the layers; None where it does not load the model."""
        return None if self.problem else self._loaded[0]

    def runnable(self) -> None:
        """Raise Unfit where the runtime does not load the model; the reason is long, and said once."""
        if self.problem:
            told, self._told = self._told, True
            raise Unfit("the runtime does not load the model, as said above" if told else self.problem)

    def paired(self) -> Specimen:
        """Return the base; raise Unfit where it cannot be run beside the model."""
        assert self.base is not None  # limits that need a base were refused without one
        self.runnable()
        if {port.name for port in self.base.signature.inputs} != {port.name for port in self.own.signature.inputs}:
            raise Unfit("the base has other inputs, so the two cannot be run on the same data")
        return self.base

    @cached_property
    def _opened(self) -> Feeds | str | None:
        """The data; why they cannot be used, where the reason is a changed contract; None without any."""
        given = self.given
        source = given.data if given.eval is None else given.eval
        if source is None:
            return None
        try:
            feeds = open_feeds(source, self.own.model, preprocess=given.preprocess, shapes=given.shapes)
        except DataError as error:
            misfit = self.misfit(error)
            if isinstance(misfit, Unfit):
                return str(misfit)
            raise
        return feeds if given.eval is not None else feeds.unlabelled()

    @property
    def data(self) -> str:
        """What the models are run on, in words; empty where the user gave nothing that fits."""
        return self._opened.describe() if isinstance(self._opened, Feeds) else ""

    @property
    def feeds(self) -> Feeds | None:
        """Evaluation data, else other data, else None; Unfit where they are for a base with other inputs."""
        if isinstance(self._opened, str):
            raise Unfit(self._opened)
        return self._opened

    @cached_property
    def feed(self) -> dict[str, NDArray[Any]]:
        """One feed at batch 1, of the data if there are any, else made up."""
        feeds = self.feeds
        if feeds is None:
            feeds = synthetic_feeds(self.own.model, self.given.seed, count=1, shapes=self.given.shapes)
        return dict(feeds.first(1))

    def quality(self, *, paired: bool, labelled: bool) -> Quality:
        """Evaluate the model, beside its base if `paired`.

        Raises:
            Unfit: That cannot be done.
            DataError: The data have no labels and `labelled` asks for them, or they do not fit.
        """
        self.runnable()
        base = self.paired() if paired else None
        feeds = self.feeds
        assert feeds is not None  # as for the base
        if labelled:
            feeds.require_labels()
        if base is not None:
            lost = [port.name for port in base.signature.outputs if port not in self.own.signature.outputs]
            if lost:
                raise Unfit(f"output '{lost[0]}' of the base is gone or changed, so the outputs cannot be compared")
        try:
            return evaluate(self.own.model, feeds, None if base is None else base.model, threads=self.given.threads)
        except DataError as error:
            raise self.misfit(error) from error
        except ModelError as error:
            self._blame_base(base, error)
            raise Unfit(str(error)) from error

    def opener(self, specimen: Specimen) -> Opener:
        """What opens a specimen for timing; errors of the base are the caller's, those of the model Unfit."""
        inner = specimen.opener(self.feed, self.given.threads)

        def opened() -> Callable[[], None]:
            try:
                return inner()
            except DataError as error:
                raise self.misfit(error) from error
            except ModelError as error:
                if specimen is self.base:
                    raise ModelError(f"--against: {error}") from None
                raise Unfit(str(error)) from error

        return opened

    def misfit(self, error: DataError) -> Exception:
        """Data that do not fit are the caller's fault, unless a model that takes others is what they do not fit."""
        if self.base is not None and self.base.signature.inputs != self.own.signature.inputs:
            return Unfit(f"the inputs are not those of the base: {error}")
        return error

    def _blame_base(self, base: Specimen | None, error: ModelError) -> None:
        """Raise InputError where it is the base that does not load."""
        if base is None:
            return
        try:
            open_session(base.model, optimize="basic", threads=self.given.threads)
        except ModelError as own:
            raise InputError(f"--against: {own}") from error
