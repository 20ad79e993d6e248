"""Our own conversions of ONNX operators to Relax: those that TVM's importer lacks, or computes otherwise than ONNX says."""
