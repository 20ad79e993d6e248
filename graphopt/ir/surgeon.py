"""The bridge to onnx-graphsurgeon, for passes that are written on `gs.Graph`.

What GraphSurgeon 0.6.1 does to a model that goes through it, found by sending one through that has everything:
- drops the model's domain, version, doc string and metadata; doc strings and metadata of the graph, nodes, attributes
  and values; the denotations of types and dimensions; quantization annotations; overloads: put back by name;
- copies an initializer that a subgraph captures into each such subgraph, so that one name has two producers, and keeps
  it in the main graph only if that uses it too: undone;
- drops initializers that nothing uses;
- writes constants of less than 8 bits, of strings, and of float8 FNUZ types wrongly, or fails, once a pass has looked
  at their values: refused;
- drops attributes that hold types, lists of tensors or lists of graphs, and fails on empty lists and on strings that
  are not UTF-8: refused;
- drops the element shape of sequence and optional inputs and outputs: put back;
- keeps all weights in one protobuf message: models beyond 2 GB are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
import onnx_ir.serde

from graphopt.errors import GraphoptError, ModelError, PassError
from graphopt.ir.interface import Interface
from graphopt.ir.loading import load
from graphopt.ir.restoring import restore_metadata
from graphopt.ir.saving import GRAPH_ROOM, take_in
from graphopt.ir.source import MAX_PROTO_BYTES
from graphopt.ir.verification import verify
from graphopt.ir.weights import each_weight, weight_bytes

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

_BROKEN_FLOATS = (ir.DataType.FLOAT8E4M3FNUZ, ir.DataType.FLOAT8E5M2FNUZ)
_DROPPED_ATTRIBUTES = (
    ir.AttributeType.TYPE_PROTO,
    ir.AttributeType.TYPE_PROTOS,
    ir.AttributeType.TENSORS,
    ir.AttributeType.GRAPHS,
)
_LISTS = (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS)
_MAX_LISTED = 5


def to_graphsurgeon(model: ir.Model) -> gs.Graph:
    """The GraphSurgeon graph of `model`, with copies of the weights.

    Raises:
        ModelError: the way there and back would lose or change something, which is named.
    """
    import onnx_graphsurgeon as gs

    if lost := [*_fragile_weights(model), *_fragile_attributes(model)]:
        more = f" and {len(lost) - _MAX_LISTED} more" if len(lost) > _MAX_LISTED else ""
        raise ModelError(
            f"GraphSurgeon would lose {'; '.join(lost[:_MAX_LISTED])}{more}",
            advice="write the pass on onnx_ir instead",
        )
    if weight_bytes(model) > MAX_PROTO_BYTES - GRAPH_ROOM:
        raise ModelError(f"GraphSurgeon holds models below 2 GB, this one has {weight_bytes(model)} bytes of weights")
    copy = model.clone()
    take_in(copy)
    return gs.import_onnx(ir.serde.serialize_model(copy))


def _fragile_weights(model: ir.Model) -> list[str]:
    return [
        f"the {tensor.dtype.name} constant {name!r}"
        for name, tensor in each_weight(model)
        if tensor.dtype == ir.DataType.STRING or tensor.dtype.bitwidth < 8 or tensor.dtype in _BROKEN_FLOATS
    ]


def _fragile_attributes(model: ir.Model) -> list[str]:
    return [
        f"the attribute {name!r} of {node.op_type} {node.name!r} ({attribute.type.name})"
        for node in model.graph.all_nodes()
        for name, attribute in node.attributes.items()
        if attribute.type in _DROPPED_ATTRIBUTES
        or (attribute.type in _LISTS and not attribute.value)
        or isinstance(attribute.value, bytes)
    ]


def from_graphsurgeon(graph: gs.Graph, like: ir.Model) -> ir.Model:
    """The IR of a GraphSurgeon graph that was made from `like` and edited.

    Args:
        like: the model before; gives the metadata that GraphSurgeon dropped, and the interface that must be kept.

    Raises:
        PassError: the edited graph is no valid model, or its inputs or outputs changed.
    """
    import onnx_graphsurgeon as gs

    try:
        proto = gs.export_onnx(graph, do_type_check=False)
        _give_back_captured(proto.graph, set(like.graph.initializers))
        proto.ir_version = max(proto.ir_version, like.ir_version)
        model = load(proto)
        restore_metadata(model, like)
        verify(model, interface=Interface.of(like))
    except GraphoptError as error:
        raise PassError(f"the edited GraphSurgeon graph is not valid: {error.what}", where=error.where) from error
    except Exception as error:  # GraphSurgeon raises whatever its own code runs into
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PassError(f"GraphSurgeon cannot export the edited graph: {reason}") from error
    return model


def _give_back_captured(main: onnx.GraphProto, captured: set[str]) -> None:
    """Move initializers that were in the main graph, by their names, out of the subgraphs and back to it."""
    present = {tensor.name for tensor in main.initializer}
    subgraphs = _subgraphs(main)
    while subgraphs:
        graph = subgraphs.pop()
        subgraphs += _subgraphs(graph)
        copies = [tensor for tensor in graph.initializer if tensor.name in captured]
        kept = [tensor for tensor in graph.initializer if tensor.name not in captured]
        main.initializer.extend(tensor for tensor in copies if tensor.name not in present)
        present.update(tensor.name for tensor in copies)
        if copies:
            del graph.initializer[:]
            graph.initializer.extend(kept)


def _subgraphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    return [attribute.g for attribute in attributes if attribute.HasField("g")]
