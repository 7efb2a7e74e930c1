/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;

/** The text on which a model calibrates itself when it is given no other. */
public final class CalibrationText {

    private static final String RESOURCE = "text.txt";

    private CalibrationText() {}

    /**
     * Returns the text of this library: English prose of many kinds, some dialogue, code and
     * tables, about 3000 tokens.
     *
     * @return the text
     */
    public static String builtIn() {
        try (InputStream in = CalibrationText.class.getResourceAsStream(RESOURCE)) {
            if (in == null) {
                throw new IllegalStateException(
                        "The jar of djl-kvquant lacks its calibration text; build it again.");
            }
            return new String(in.readAllBytes(), StandardCharsets.UTF_8);
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }

    /**
     * Returns the hash of a text that a calibration file names.
     *
     * @param text the text
     * @return SHA-256 of its UTF-8 bytes, 64 hexadecimal digits
     */
    public static String sha256(String text) {
        return new Sha256().add(ByteBuffer.wrap(text.getBytes(StandardCharsets.UTF_8))).hex();
    }
}
