"""TensorRT engines of a bundle's models: both flavours behind one door (`api`), and what describes an engine file
(`sidecar`). Nothing here imports TensorRT until a flavour is opened."""
