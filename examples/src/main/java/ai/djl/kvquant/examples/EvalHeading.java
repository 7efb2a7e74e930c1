/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import ai.djl.MalformedModelException;
import ai.djl.kvquant.calibrate.ModelFingerprint;
import java.io.IOException;
import java.util.List;

/**
 * What the parts of one run have in common.
 *
 * @param model the model's name
 * @param fingerprint of the model's files
 * @param weights the type in which weights are kept
 * @param run the command
 * @param notes sentences about the model
 */
record EvalHeading(
        String model, String fingerprint, String weights, EvalPart.Run run, List<String> notes) {

    static EvalHeading of(Session session, EvalPart.Run run, List<String> notes)
            throws IOException, MalformedModelException {
        return new EvalHeading(
                session.directory().toRealPath().getFileName().toString(),
                ModelFingerprint.of(session.directory()),
                session.model().weightType().toString(),
                run,
                notes);
    }
}
