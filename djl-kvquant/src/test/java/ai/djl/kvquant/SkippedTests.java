/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant;

import org.junit.platform.engine.TestExecutionResult;
import org.junit.platform.engine.support.descriptor.ClassSource;
import org.junit.platform.engine.support.descriptor.MethodSource;
import org.junit.platform.launcher.TestExecutionListener;
import org.junit.platform.launcher.TestIdentifier;

/** Prints each skipped test with its reason; surefire only counts them. */
public class SkippedTests implements TestExecutionListener {

    /** {@inheritDoc} */
    @Override
    public void executionSkipped(TestIdentifier test, String reason) {
        print(test, reason);
    }

    /** {@inheritDoc} */
    @Override
    public void executionFinished(TestIdentifier test, TestExecutionResult result) {
        if (result.getStatus() == TestExecutionResult.Status.ABORTED) {
            print(test, result.getThrowable().map(Throwable::getMessage).orElse("no reason given"));
        }
    }

    private static void print(TestIdentifier test, String reason) {
        System.out.println("SKIPPED " + name(test) + ": " + reason);
    }

    private static String name(TestIdentifier test) {
        return test.getSource()
                .map(
                        source -> {
                            if (source instanceof MethodSource method) {
                                return method.getClassName() + "." + test.getDisplayName();
                            }
                            if (source instanceof ClassSource type) {
                                return type.getClassName();
                            }
                            return test.getDisplayName();
                        })
                .orElse(test.getDisplayName());
    }
}
