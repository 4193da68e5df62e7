r"""Attention heads as units: what `nn.MultiheadAttention` hides as layers, and what a module needs to have fewer heads.

    y = sum_h softmax(q_h k_h' / sqrt(d)) v_h W_h + b        q_h, k_h, v_h (tokens, d), W_h (d, out)

Head h owns its d rows of the projections q, k and v and its d columns of the output projection. Zero rows of v (and
its bias) make the head's values zero, zero columns keep out the rest, so a masked head adds nothing, and removing it
leaves d and with it 1 / sqrt(d) as they were.

`nn.MultiheadAttention` runs none of its projections as a layer and ties embed_dim to heads * d. Wherever layers are
watched or cut it is `opened`: a `HeadAttention` with the layers `q_proj`, `k_proj`, `v_proj` and `out_proj` takes its
place, on the same storage. These names are also the keys of its masks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunesolve.problems import Group

_PARTS = ("q_proj", "k_proj", "v_proj")


# -- nn.MultiheadAttention as layers


class HeadAttention(nn.MultiheadAttention):
    """What `nn.MultiheadAttention` computes, with its projections as layers and any number of heads.

    It is one to whoever asks by type; its packed weights are None.

    Parameters
    ----------
    q_proj, k_proj, v_proj, out_proj : nn.Linear
        Projections; the first three give heads * head_dim features, the last reads them.
    num_heads : int
        Number of heads.
    batch_first, dropout
        As in `nn.MultiheadAttention`.

    Examples
    --------
    >>> dense = nn.MultiheadAttention(8, 2, batch_first=True)
    >>> x = torch.randn(1, 3, 8)
    >>> torch.allclose(HeadAttention.of(dense)(x, x, x)[0], dense(x, x, x)[0], atol=1e-6)
    True
    """

    def __init__(
        self,
        q_proj: nn.Linear,
        k_proj: nn.Linear,
        v_proj: nn.Linear,
        out_proj: nn.Linear,
        num_heads: int,
        batch_first: bool = False,
        dropout: float = 0.0,
    ) -> None:
        nn.Module.__init__(self)
        # nn.TransformerEncoderLayer asks for these before it hands the packed weights, absent here, to its fused kernel
        self._qkv_same_embed_dim = False
        self.register_parameter("in_proj_weight", None)
        self.register_parameter("in_proj_bias", None)
        self.bias_k, self.bias_v, self.add_zero_attn = None, None, False
        self.kdim, self.vdim = k_proj.in_features, v_proj.in_features
        self.q_proj, self.k_proj, self.v_proj = q_proj, k_proj, v_proj
        self.add_module("out_proj", out_proj)
        self.num_heads, self.head_dim = num_heads, q_proj.out_features // num_heads
        self.embed_dim, self.batch_first, self.dropout = out_proj.out_features, batch_first, dropout

    @staticmethod
    def of(module: nn.MultiheadAttention) -> HeadAttention:
        """The same attention on the same storage: what is written into its layers is written into `module`."""
        q, k, v = (_view(module, part) for part in range(3))
        opened = HeadAttention(q, k, v, module.out_proj, module.num_heads, module.batch_first, module.dropout)
        opened.training = module.training
        opened._forward_hooks, opened._forward_pre_hooks = module._forward_hooks, module._forward_pre_hooks
        return opened

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Answer and attention weights, as `nn.MultiheadAttention.forward`; `is_causal` is a hint there and unused."""
        alone, turned = query.ndim == 2, query.ndim == 3 and not self.batch_first
        if alone:
            query, key, value = query[None], key[None], value[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif turned:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        read = ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        q, k, v = (layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for layer, x in read)
        mask = _added(attn_mask, key_padding_mask, q)
        dropped = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(2, 3) * self.head_dim**-0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = F.dropout(weights, dropped) if dropped else weights
            heads = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            heads = F.scaled_dot_product_attention(q, k, v, mask, dropped)
        answer = self.out_proj(heads.transpose(1, 2).flatten(2))
        if alone:
            return answer[0], None if weights is None else weights[0]
        return answer.transpose(0, 1) if turned else answer, weights


def _added(attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor) -> Tensor | None:
    """Both masks as one term of the scores (batch, heads, queries, keys); a mask per head cannot lose heads."""
    terms = []
    if attn_mask is not None:
        shaped = attn_mask if attn_mask.ndim == 2 else attn_mask.unflatten(0, (q.shape[0], q.shape[1]))
        terms.append(_term(shaped, q))
    if key_padding_mask is not None:
        terms.append(_term(key_padding_mask[:, None, None], q))
    return sum(terms[1:], terms[0]) if terms else None


def _term(mask: Tensor, q: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(q.dtype)
    return torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(mask, float("-inf"))


def _view(module: nn.MultiheadAttention, part: int) -> nn.Linear:
    """One of the packed projections as a layer that shares its storage."""
    rows = slice(part * module.embed_dim, (part + 1) * module.embed_dim)
    packed = module.in_proj_weight
    held = getattr(module, f"{_PARTS[part]}_weight") if packed is None else packed
    weight = nn.Parameter(held.data if packed is None else held.data[rows], held.requires_grad)
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = weight
    if module.in_proj_bias is not None:
        layer.bias = nn.Parameter(module.in_proj_bias.data[rows], module.in_proj_bias.requires_grad)
    return layer.train(module.training)


def why_closed(module: nn.Module) -> str:
    """Why an `nn.MultiheadAttention` cannot be opened; empty where it can or is none."""
    if not isinstance(module, nn.MultiheadAttention) or isinstance(module, HeadAttention):
        return ""
    if type(module) is not nn.MultiheadAttention:
        return f"{type(module).__name__} changes nn.MultiheadAttention in a way that is not known"
    if module.bias_k is not None or module.add_zero_attn:
        return "it attends to a key of its own (add_bias_kv, add_zero_attn), which no head owns"
    held = ("in_proj_weight",) if module._qkv_same_embed_dim else tuple(f"{part}_weight" for part in _PARTS)
    if any(module._parameters.get(name) is None for name in held):
        return "it computes its weight at each call (a pruning mask, a parametrisation)"
    return ""


def _opens(module: nn.Module | None) -> bool:
    return type(module) is nn.MultiheadAttention and not why_closed(module)


def open_attention(model: nn.Module, paths: Collection[str] | None = None) -> nn.Module:
    """Put a `HeadAttention` in the place of every `nn.MultiheadAttention` inside the model.

    Parameters
    ----------
    model : nn.Module
    paths : collection of str, optional
        Only those, as `owners` names them.

    Returns
    -------
    nn.Module
        The model, changed in place; it computes what it did, on the same storage.
    """
    _open(model, paths)
    for encoder in model.modules():
        # its nested tensors are for the fused kernel alone, which the opened layers do not run
        if isinstance(encoder, nn.TransformerEncoder) and any(isinstance(m, HeadAttention) for m in encoder.modules()):
            encoder.use_nested_tensor = False
    return model


@contextmanager
def opened(paths: Collection[str] | None, *models: nn.Module) -> Iterator[None]:
    """Inside, every `nn.MultiheadAttention` of the models runs as layers; afterwards each is itself again.

    Parameters
    ----------
    paths : collection of str or None
        Only those, as `owners` names them; None all.
    models : nn.Module
        Changed in place, and back.

    Examples
    --------
    >>> net = nn.TransformerEncoderLayer(8, 2, 16)
    >>> with opened(None, net):
    ...     net.self_attn.q_proj.weight.shape
    torch.Size([8, 8])
    >>> type(net.self_attn).__name__
    'MultiheadAttention'
    """
    undo = [step for model in models for step in _open(model, paths)]
    try:
        yield
    finally:
        for parent, name, module in undo:
            parent._modules[name] = module


def owners(groups: Sequence[Group]) -> set[str]:
    """Paths of the modules around the groups' layers: the only ones that have to be opened for them."""
    return {member.path.rpartition(".")[0] for group in groups for member in group.members}


def _open(model: nn.Module, paths: Collection[str] | None) -> list[tuple[nn.Module, str, nn.Module]]:
    replaced: dict[int, HeadAttention] = {}
    undo: list[tuple[nn.Module, str, nn.Module]] = []
    for path, parent in list(model.named_modules()):
        for name, child in list(parent._modules.items()):
            if _opens(child) and (paths is None or f"{path}.{name}".lstrip(".") in paths):
                assert isinstance(child, nn.MultiheadAttention)
                undo.append((parent, name, child))
                # one module in several places stays one
                parent._modules[name] = replaced.setdefault(id(child), HeadAttention.of(child))
    return undo


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """`named_modules` with the projections of every `nn.MultiheadAttention` as layers of their own."""
    found = dict(model.named_modules())
    for path, module in list(found.items()):
        if path and isinstance(module, nn.MultiheadAttention) and _opens(module):
            found |= {f"{path}.{part}": _view(module, i) for i, part in enumerate(_PARTS)}
    return found


def packed_masks(model: nn.Module, found: Mapping[tuple[str, str], Tensor]) -> dict[tuple[str, str], Tensor]:
    """{(module path, parameter name): mask} with the masks of opened projections moved to the packed parameters."""
    moved: dict[tuple[str, str], Tensor] = {}
    modules = dict(model.named_modules())
    for (path, name), mask in found.items():
        parent, _, part = path.rpartition(".")
        owner = modules.get(parent)
        if path in modules or not isinstance(owner, nn.MultiheadAttention):
            moved[path, name] = mask & moved.get((path, name), torch.ones_like(mask))
            continue
        if name == "weight" and owner.in_proj_weight is None:
            moved[parent, f"{part}_weight"] = mask
            continue
        target = f"in_proj_{name}"
        whole = moved.setdefault((parent, target), torch.ones(getattr(owner, target).shape, dtype=torch.bool))
        start = _PARTS.index(part) * owner.embed_dim
        whole[start : start + owner.embed_dim] &= mask.to(whole.device)
    return moved


# -- which groups are heads


class Heads(NamedTuple):
    """The heads of one attention module and which of them stay."""

    kept: Tensor  # (heads,) bool; with grouped queries one entry is a key-value head and the queries that read it
    producers: tuple[str, ...]  # paths below the module
    reader: str
    width: int  # features of one unit at the reader


def heads_of(group: Group, modules: Mapping[str, nn.Module], keep: Any = None) -> tuple[str, Heads] | None:
    """(path of the attention module, its heads) where the group's units are attention heads, else None.

    They are where the units own several features of one Linear and a module around all members holds a number of heads
    that is a multiple of the units' number.
    """
    readers = [m for m in group.members if m.axis == "in"]
    makers = [m for m in group.members if m.axis == "out"]
    if len(readers) != 1 or readers[0].channels.shape[1] < 2:
        return None
    if not all(isinstance(modules.get(m.path), nn.Linear) for m in group.members):
        return None
    parent = _common_parent([m.path for m in group.members])
    if parent not in modules or not (
        _counts(modules[parent], group.size) or isinstance(modules[parent], HeadAttention)
    ):
        return None
    kept = torch.ones(group.size, dtype=torch.bool) if keep is None else torch.tensor(keep.tolist())
    below = len(parent) + 1 if parent else 0
    return parent, Heads(
        kept, tuple(m.path[below:] for m in makers), readers[0].path[below:], readers[0].channels.shape[1]
    )


def _common_parent(paths: Sequence[str]) -> str:
    parts = [path.split(".")[:-1] for path in paths]
    shared = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return ".".join(shared)


def _numbers(module: nn.Module) -> Iterator[tuple[nn.Module, str, int]]:
    """(module, attribute, value) of the whole numbers that a module and those inside it hold."""
    for inner in module.modules():
        if isinstance(inner, nn.Linear):
            continue
        for name, value in vars(inner).items():
            if type(value) is int and value > 1:
                yield inner, name, value


def _is_count(name: str) -> bool:
    return name == "h" or ("head" in name and not any(word in name for word in ("dim", "size", "width")))


def _counts(module: nn.Module, size: int) -> list[tuple[nn.Module, str, int]]:
    return [(m, name, value) for m, name, value in _numbers(module) if _is_count(name) and value % size == 0]


def projections(model: nn.Module) -> set[str]:
    """Paths of the Linear layers near a number of heads, whose features may be told apart head by head."""
    modules, found = dict(model.named_modules()), set()
    for path, module in modules.items():
        if not isinstance(module, nn.Linear):
            continue
        above = [path.rsplit(".", up)[0] for up in (1, 2) if path.count(".") >= up] or [""]
        if any(_is_count(n) and type(v) is int and v > 1 for p in above for n, v in vars(modules[p]).items()):
            found.add(path)
    return found


# -- a module with fewer heads

Call = tuple[tuple[Any, ...], dict[str, Any]]


def settled(masked: nn.Module, removed: nn.Module, heads: Heads, calls: Sequence[Call]) -> nn.Module:
    """The attention module `removed`, its layers already cut, made to run with fewer heads.

    Tried in turn, on the calls that `masked` was seen to get: its number of heads set; its inner width set as well; the
    textbook attention of `SelfAttention` in the place of its forward code, which may have read the width off its input.
    The first that answers as `masked` does is taken. Where none does, the first: the check of the whole network speaks.
    """
    if isinstance(removed, HeadAttention):
        removed.num_heads = int(heads.kept.sum())
        return removed
    attempts: list[Callable[[], nn.Module]] = [
        lambda: _renumbered(removed, heads, widths=False),
        lambda: _renumbered(removed, heads, widths=True),
        *(lambda form=form: SelfAttention(removed, heads, form) for form in _forms(masked, heads, calls)),
    ]
    wanted = [_answer(masked, call) for call in calls]
    for attempt in attempts if calls else ():
        candidate = attempt()
        if all(_same(w, _answer(candidate, call)) for w, call in zip(wanted, calls, strict=True)):
            return candidate
    return attempts[0]()


def _renumbered(module: nn.Module, heads: Heads, widths: bool) -> nn.Module:
    """A copy with its numbers of heads, and where asked its heads' joint width, as many as stay."""
    renumbered, size, kept = copy.deepcopy(module), len(heads.kept), int(heads.kept.sum())
    for owner, name, value in list(_numbers(renumbered)):
        if _is_count(name) and value % size == 0:
            setattr(owner, name, value // size * kept)
        elif widths and value == size * heads.width:
            setattr(owner, name, kept * heads.width)
    return renumbered


def _answer(module: nn.Module, call: Call) -> Any:
    args, kwargs = call
    try:
        return module(*args, **kwargs)
    except Exception:  # what does not run is no candidate
        return None


def _same(wanted: Any, got: Any) -> bool:
    if isinstance(wanted, (tuple, list)):
        return isinstance(got, (tuple, list)) and len(got) == len(wanted) and all(map(_same, wanted, got))
    if not isinstance(wanted, Tensor) or not isinstance(got, Tensor):
        return wanted is None and got is None
    close = wanted.shape == got.shape
    return close and bool(
        torch.allclose(wanted, got, 1e-3, 1e-4 * float(wanted.abs().max()) if wanted.numel() else 0.0)
    )


class Form(NamedTuple):
    """How a hand-written attention module arranges what it multiplies."""

    order: tuple[int, ...]  # which of the producers' parts are q, k and v
    heads_first: bool  # a packed projection gives (heads, 3, d) instead of (3, heads, d)
    causal: bool
    scale: float | None
    dropout: float = 0.0  # of the attention weights, in training
    after: tuple[str, ...] = ()  # dropout layers behind the output projection


def _forms(module: nn.Module, heads: Heads, calls: Sequence[Call]) -> list[Form]:
    if len(heads.producers) not in (1, 3) or not calls:
        return []
    orders = [(0, 1, 2)] if len(heads.producers) == 1 else [(0, 1, 2), (1, 0, 2), (0, 2, 1), (2, 1, 0)]
    scales = [None, *(v for v in vars(module).values() if type(v) is float and v > 0.0)]
    firsts = [False, True] if len(heads.producers) == 1 else [False]
    dropouts = _dropouts(module, heads.reader, calls[0])
    ways = product(orders, firsts, (False, True), dict.fromkeys(scales))
    return [Form(order, first, causal, scale, *dropouts) for order, first, causal, scale in ways]


def _dropouts(module: nn.Module, reader: str, call: Call) -> tuple[float, tuple[str, ...]]:
    """The dropout that runs before the output projection, and the paths of those behind it."""
    ran: list[str] = []
    watched = {path: m for path, m in module.named_modules() if isinstance(m, nn.Dropout) or path == reader}
    handles = [m.register_forward_hook(lambda *_, path=path: ran.append(path)) for path, m in watched.items()]
    try:
        _answer(module, call)
    finally:
        for handle in handles:
            handle.remove()
    if reader not in ran:
        return 0.0, ()
    at = ran.index(reader)
    return max((float(watched[path].p) for path in ran[:at]), default=0.0), tuple(ran[at + 1 :])


class SelfAttention(nn.Module):
    """Textbook self-attention over the layers of a module whose own code cannot have fewer heads.

    Takes the place of that module: its children keep their names. Only `x (batch, tokens, features)` may go in.

    Parameters
    ----------
    module : nn.Module
        The hand-written attention, its layers already cut.
    heads : Heads
        Its projections and what is left of its heads.
    form : Form
        How they are arranged.
    """

    def __init__(self, module: nn.Module, heads: Heads, form: Form) -> None:
        super().__init__()
        self._modules.update(module._modules)
        self.training = module.training
        self.num_heads, self.head_dim = int(heads.kept.sum()), heads.width
        self.producers, self.reader, self.form = heads.producers, heads.reader, form

    def forward(self, x: Tensor) -> Tensor:
        """Attention of x (batch, tokens, features) to itself."""
        form = self.form
        shape = (-1, 3, self.head_dim) if form.heads_first else (3, -1, self.head_dim)
        if len(self.producers) == 1:
            parts = self.get_submodule(self.producers[0])(x).unflatten(2, shape).unbind(3 if form.heads_first else 2)
        else:
            made = [self.get_submodule(path)(x) for path in self.producers]
            parts = tuple(y.unflatten(2, (-1, self.head_dim)) for y in made)
        q, k, v = (parts[i].transpose(1, 2) for i in form.order)
        dropped = form.dropout if self.training else 0.0
        heads = F.scaled_dot_product_attention(q, k, v, None, dropped, form.causal, scale=form.scale)
        answer = self.get_submodule(self.reader)(heads.transpose(1, 2).flatten(2))
        for path in form.after:
            answer = self.get_submodule(path)(answer)
        return answer


def calls_of(model: nn.Module, paths: Sequence[str], run: Callable[[], Any]) -> dict[str, list[Call]]:
    """What the modules of those paths are called with while `run` runs the model."""
    seen: dict[str, list[Call]] = {path: [] for path in paths}
    handles = [
        model.get_submodule(path).register_forward_pre_hook(
            lambda _, args, kwargs, path=path: seen[path].append((args, kwargs)), with_kwargs=True
        )
        for path in paths
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return seen
