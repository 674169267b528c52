"""Recording hooks on a toy model: what is taken, when the pass stops, and what is left behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from actstore.errors import UnsupportedModelError
from actstore.model.architecture import Family, Tap
from actstore.model.hooks import Recorder, find_taps
from actstore.site import Site

FAMILY = Family(blocks="blocks", final_norm="norm", inner={"attn_out": Tap("attn", "out")})


class Attention(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x * 0.5, None


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = Attention()
        self.calls = 0

    def forward(self, hidden_states: Tensor) -> Tensor:
        self.calls += 1
        return hidden_states + self.attn(hidden_states)[0]


class Toy(nn.Module):
    def __init__(self, *, by_keyword: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(3)])
        self.norm = nn.LayerNorm(4)
        self.by_keyword = by_keyword

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(hidden_states=x) if self.by_keyword else block(x)
        return self.norm(x)


def n_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


X = torch.arange(24.0).reshape(1, 6, 4)


@pytest.mark.parametrize("by_keyword", [False, True])
def test_each_point_gives_its_tensor(by_keyword: bool) -> None:
    model = Toy(by_keyword=by_keyword)
    sites = tuple(map(Site.parse, ["embed", "resid_pre.1", "attn_out.1", "resid_post.2"]))
    got: dict[Site, Tensor] = {}
    with Recorder(find_taps(model, FAMILY, sites), got.__setitem__) as recorder:
        recorder.forward(model, x=X)
    for site, factor in zip(sites, (1, 1.5, 0.75, 1.5**3), strict=True):
        torch.testing.assert_close(got[site], X * factor)


def test_the_pass_stops_after_the_deepest_site() -> None:
    model = Toy()
    sites = (Site("resid_post", 1), Site("resid_pre", 0))
    with Recorder(find_taps(model, FAMILY, sites), lambda site, x: None) as recorder:
        assert recorder.forward(model, x=X) is None
    assert [block.calls for block in model.blocks] == [1, 1, 0]
    whole = Recorder(find_taps(model, FAMILY, sites), lambda site, x: None, early_exit=False)
    with whole as recorder:
        assert recorder.forward(model, x=X) is not None
    assert [block.calls for block in model.blocks] == [2, 2, 1]


def test_hooks_are_gone_after_a_run_and_after_an_exception() -> None:
    model = Toy()
    taps = find_taps(model, FAMILY, (Site("embed"), Site("final_norm")))

    def fail(site: Site, x: Tensor) -> None:
        raise RuntimeError("sink")

    with Recorder(taps, lambda site, x: None) as recorder:
        assert n_hooks(model) == 2
        recorder.forward(model, x=X)
    assert n_hooks(model) == 0
    with pytest.raises(RuntimeError, match="sink"), Recorder(taps, fail) as recorder:
        recorder.forward(model, x=X)
    assert n_hooks(model) == 0


def test_a_missing_module_names_the_site() -> None:
    with pytest.raises(UnsupportedModelError, match=r"no module 'blocks.3' for site resid_post.3"):
        find_taps(Toy(), FAMILY, (Site("resid_post", 3),))


def test_a_site_that_is_never_reached_is_an_error() -> None:
    model = Toy()
    idle = nn.Identity()
    taps = {
        Site("embed"): (model.blocks[0], Tap("", "in")),
        Site("final_norm"): (idle, Tap("", "out")),
    }
    with (
        Recorder(taps, lambda site, x: None) as recorder,
        pytest.raises(UnsupportedModelError, match="never reached site final_norm"),
    ):
        recorder.forward(model, x=X)


def test_a_site_reached_twice_is_an_error() -> None:
    model = Toy()
    model.blocks[2] = model.blocks[0]
    taps = find_taps(model, FAMILY, (Site("resid_post", 0), Site("final_norm")))
    with (
        Recorder(taps, lambda site, x: None) as recorder,
        pytest.raises(UnsupportedModelError, match=r"resid_post\.0 \(Block\) does not give one"),
    ):
        recorder.forward(model, x=X)


def test_a_flattened_tensor_is_an_error() -> None:
    model = Toy()
    taps = find_taps(model, FAMILY, (Site("embed"),))
    with (
        Recorder(taps, lambda site, x: None) as recorder,
        pytest.raises(UnsupportedModelError, match="embed"),
    ):
        recorder.forward(model, x=X[0])
