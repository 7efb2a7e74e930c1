/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
/** Runs the Java cells of Jupyter notebooks through jshell and stores their outputs. */
package ai.djl.kvquant.examples.notebook;
