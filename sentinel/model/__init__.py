"""Pure arithmetic on tensors: cells, forecaster, features, scale, score, calibrate, learn. Knows no clock and no I/O."""
