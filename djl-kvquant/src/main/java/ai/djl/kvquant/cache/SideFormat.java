/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

/**
 * How one side (keys or values) of a layer is stored; written as SideParams of the operators'
 * layout.h.
 */
sealed interface SideFormat
        permits PlainFormat, RotatedFormat, StaticFormat, NormFormat, CodebookFormat {

    /** Bytes of SideParams. */
    int BYTES = 80;

    /** Bits per element with all that is stored beside codes. */
    double effectiveBits();

    /** Whether keys of this format are stored before RoPE. */
    boolean isPreRope();

    /** Whether tokens are stored as codes, so that sinks and a window make a difference. */
    boolean isQuantized();

    /** Whether scores of keys of this format have a bias. */
    default boolean hasScoreBias() {
        return false;
    }

    /** Writes {@link #BYTES} bytes of header, and tables. */
    void write(ParamsWriter out);
}
