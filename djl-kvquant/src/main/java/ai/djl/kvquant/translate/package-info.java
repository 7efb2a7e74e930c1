/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
/** Text in, text out: chat templates and DJL translators. */
package ai.djl.kvquant.translate;
