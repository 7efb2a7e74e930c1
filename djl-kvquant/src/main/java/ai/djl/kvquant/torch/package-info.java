/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
/**
 * The only package that touches DJL's PyTorch classes: TorchScript archives, modules and the operator library.
 */
package ai.djl.kvquant.torch;
