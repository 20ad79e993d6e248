"""Put back what another tool dropped on the way: names, doc strings, metadata, annotations."""

from __future__ import annotations

import onnx_ir as ir


def restore_metadata(model: ir.Model, like: ir.Model) -> None:
    """Give `model`, which a tool made from `like`, the metadata of `like` wherever `model` has none.

    Nodes are matched by the name of their first output, values by their names; what is new keeps what it has.
    """
    model.producer_name = like.producer_name
    model.producer_version = like.producer_version
    model.domain = like.domain
    model.model_version = like.model_version
    model.doc_string = like.doc_string
    model.device_configurations = like.device_configurations
    model.metadata_props.update(like.metadata_props)
    old_values = {value.name: value for value in _values(like)}
    for value in _values(model):
        if value.name and value.name in old_values:
            _restore_value(value, old_values[value.name])
    old_nodes = {node.outputs[0].name: node for node in like.graph.all_nodes() if node.outputs}
    for node in model.graph.all_nodes():
        old = old_nodes.get(node.outputs[0].name) if node.outputs else None
        if old is not None and (old.op_type, old.domain) == (node.op_type, node.domain):
            _restore_node(node, old)
    _restore_graph(model.graph, like.graph)


def _values(model: ir.Model) -> list[ir.Value]:
    values = []
    for graph in model.graphs():
        values += [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    return values


def _restore_value(value: ir.Value, old: ir.Value) -> None:
    value.doc_string = value.doc_string or old.doc_string
    value.metadata_props.update({**old.metadata_props, **value.metadata_props})
    value.meta.update(old.meta)  # quantization annotations
    if old.shape is not None and (value.shape is None or value.shape == old.shape):
        value.shape = old.shape.copy()  # with what the dimensions denote
    if old.type is not None and (value.type is None or value.type == old.type):
        value.type = old.type
    tensor, before = value.const_value, old.const_value
    if tensor is not None and before is not None and not tensor.doc_string and before.doc_string:
        value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name, doc_string=before.doc_string)


def _restore_node(node: ir.Node, old: ir.Node) -> None:
    node.name = node.name or old.name
    node.doc_string = node.doc_string or old.doc_string
    node.overload = node.overload or old.overload
    node.metadata_props.update({**old.metadata_props, **node.metadata_props})
    node.device_configurations = node.device_configurations or old.device_configurations
    for name, attribute in node.attributes.items():
        before = old.attributes.get(name)
        if before is None:
            continue
        attribute.doc_string = attribute.doc_string or before.doc_string
        if attribute.type == before.type == ir.AttributeType.GRAPH:
            _restore_graph(attribute.as_graph(), before.as_graph())


def _restore_graph(graph: ir.Graph, old: ir.Graph) -> None:
    graph.name = graph.name or old.name
    graph.doc_string = graph.doc_string or old.doc_string
    graph.metadata_props.update({**old.metadata_props, **graph.metadata_props})
