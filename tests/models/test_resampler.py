"""The Resampler against its formula written out, with heads that do not fill the width."""

import torch
from torch.nn import functional as F

from vton.models.resampler import Resampler, build_resampler, resampler_shape
from vton.models.settings import ResamplerConfig


def test_formula_with_explicit_softmax():
    torch.manual_seed(0)
    resampler = Resampler(
        24, depth=2, heads=3, head_width=5, queries=4, input_width=10, output_width=14
    )
    x = torch.randn(2, 7, 10)
    projected, queries = resampler.proj_in(x), resampler.latents.expand(2, -1, -1)
    for attention, mlp in resampler.layers:
        normed = F.layer_norm(queries, (24,))
        read = torch.cat([F.layer_norm(projected, (24,)), normed], 1)
        keys, values = (read @ attention.to_kv.weight.T).chunk(2, -1)
        heads = []
        for head in range(3):
            part = slice(5 * head, 5 * head + 5)
            q = (normed @ attention.to_q.weight.T)[..., part]
            heads.append(torch.softmax(q @ keys[..., part].mT / 5**0.5, -1) @ values[..., part])
        queries = queries + torch.cat(heads, -1) @ attention.to_out.weight.T
        hidden = F.gelu(F.layer_norm(queries, (24,)) @ mlp[1].weight.T)
        queries = queries + hidden @ mlp[3].weight.T
    expected = F.layer_norm(resampler.proj_out(queries), (14,))
    torch.testing.assert_close(resampler(x), expected, atol=1e-5, rtol=1e-5)


def test_its_tensors_tell_its_sizes():
    config = ResamplerConfig(width=24, depth=2, heads=3, head_width=5, queries=4, feed_forward=2)
    state = build_resampler(config, input_width=10, output_width=14).state_dict()
    assert resampler_shape(state) == {
        "width": 24,
        "depth": 2,
        "inner": 15,
        "queries": 4,
        "input_width": 10,
        "output_width": 14,
        "feed_forward": 2,
    }
