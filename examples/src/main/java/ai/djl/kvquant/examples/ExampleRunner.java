/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import java.io.PrintStream;
import java.lang.reflect.InvocationTargetException;
import java.util.Arrays;

/**
 * Starts an example program for {@code run-example}, and tells errors in one line, so that the
 * programs need not.
 */
public final class ExampleRunner {

    private ExampleRunner() {}

    /**
     * Runs a program.
     *
     * @param args its name in the package {@code programs}, and its arguments
     */
    public static void main(String[] args) {
        System.exit(run(args, System.err));
    }

    /**
     * Runs a program.
     *
     * @param args its name in the package {@code programs}, and its arguments
     * @param err where errors go
     * @return the exit code: 0, or 1 after an error
     */
    static int run(String[] args, PrintStream err) {
        String[] own = Arrays.copyOfRange(args, 1, args.length);
        try {
            Class.forName(ExampleRunner.class.getPackageName() + ".programs." + args[0])
                    .getMethod("main", String[].class)
                    .invoke(null, (Object) own);
            return 0;
        } catch (InvocationTargetException e) {
            Throwable cause = e.getCause();
            if (Errors.speaksForItself(cause)) {
                err.println(args[0] + ": " + Errors.describe(cause));
            } else {
                cause.printStackTrace(err);
            }
            return 1;
        } catch (ReflectiveOperationException e) {
            throw new IllegalArgumentException("There is no example " + args[0] + ".", e);
        }
    }
}
