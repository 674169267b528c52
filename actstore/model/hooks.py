"""Recording sites: forward hooks that live only inside a `with` block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from actstore.errors import UnsupportedModelError
from actstore.model.architecture import Family, Tap
from actstore.site import Site

__all__ = ["Recorder", "find_taps"]

Receiver = Callable[[Site, Tensor], None]


class _Done(Exception):
    """Everything asked for was recorded: the rest of the forward pass is not needed."""


def find_taps(
    model: nn.Module, family: Family, sites: tuple[Site, ...]
) -> dict[Site, tuple[nn.Module, Tap]]:
    """The module and side of each site; UnsupportedModelError if the model lacks the module."""
    found = {}
    for site in sites:
        tap = family.tap(site)
        try:
            found[site] = (model.get_submodule(tap.module), tap)
        except AttributeError as error:
            raise UnsupportedModelError(
                f"{type(model).__name__} has no module {tap.module!r} for site {site}: this "
                "version of the architecture is not known"
            ) from error
    return found


class Recorder:
    """Hooks on the given sites that pass each site's tensor on as the forward pass reaches it.

    `receive(site, x)` gets [batch, tokens, width] and must copy what it keeps: the model may
    overwrite the tensor later. With `early_exit` the pass stops after the deepest site.
    """

    def __init__(
        self,
        taps: Mapping[Site, tuple[nn.Module, Tap]],
        receive: Receiver,
        *,
        early_exit: bool = True,
    ) -> None:
        self._taps = taps
        self._receive = receive
        self._early_exit = early_exit
        self._handles: list[RemovableHandle] = []
        self._seen: set[Site] = set()

    def __enter__(self) -> Recorder:
        for site, (module, tap) in self._taps.items():
            if tap.side == "in":
                hook = module.register_forward_pre_hook(self._on_input(site), with_kwargs=True)
            else:
                hook = module.register_forward_hook(self._on_output(site))
            self._handles.append(hook)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while self._handles:
            self._handles.pop().remove()

    def forward(self, model: nn.Module, **inputs: Any) -> Any:
        """One forward pass; returns the model's output, or None after an early exit.

        UnsupportedModelError unless each site was reached exactly once.
        """
        self._seen = set()
        try:
            output = model(**inputs)
        except _Done:
            output = None
        missing = self._taps.keys() - self._seen
        if missing:
            raise UnsupportedModelError(
                f"the forward pass of {type(model).__name__} never reached site "
                f"{sorted(map(str, missing))[0]}: its hook points are not where the architecture "
                "table says"
            )
        return output

    def _on_input(self, site: Site) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._take(site, module, args[0] if args else kwargs.get("hidden_states"))

        return hook

    def _on_output(self, site: Site) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._take(site, module, output[0] if isinstance(output, tuple) else output)

        return hook

    def _take(self, site: Site, module: nn.Module, x: object) -> None:
        if not isinstance(x, torch.Tensor) or x.ndim != 3 or site in self._seen:
            raise UnsupportedModelError(
                f"site {site} ({type(module).__name__}) does not give one [batch, tokens, width] "
                "tensor in a forward pass: this version of the architecture is not known"
            )
        self._seen.add(site)
        self._receive(site, x)
        if self._early_exit and len(self._seen) == len(self._taps):
            raise _Done
