"""Arrays without reference counts.

numba counts references to every array that a compiled function hands to another, with atomic operations that cost
more than a move. The caller holds all arrays for as long as a kernel runs, so the kernels work on borrowed ones.
"""

from __future__ import annotations

from numba.core import cgutils, types
from numba.extending import intrinsic


@intrinsic
def borrow(typingctx, value):
    """The same array, or named tuple with such arrays, with no owner to count references for."""

    def codegen(context, builder, signature, arguments):
        return _without_owner(context, builder, signature.return_type, arguments[0])

    return value(value), codegen


def _without_owner(context, builder, kind, value):
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value)
        array.meminfo = cgutils.get_null_value(array.meminfo.type)
        array.parent = cgutils.get_null_value(array.parent.type)
        return array._getvalue()
    if isinstance(kind, types.BaseTuple):
        members = [
            _without_owner(context, builder, member, builder.extract_value(value, k)) for k, member in enumerate(kind)
        ]
        return context.make_tuple(builder, kind, members)
    return value
