"""Makes ONNX models from other formats, without the frameworks that wrote them."""
