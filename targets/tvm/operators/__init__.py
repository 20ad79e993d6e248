"""Our own conversions of ONNX operators to Relax: what TVM's importer lacks or computes wrongly."""
