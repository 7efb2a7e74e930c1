/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples.notebook;

import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** Runs notebooks: every cell of code in order, up to one that fails. */
public final class NotebookRunner {

    private static final String CHECK = "--check";

    private NotebookRunner() {}

    /**
     * Runs notebooks and ends the JVM: 1 if a cell failed.
     *
     * @param args .ipynb files; {@code --check} leaves them as they are
     */
    public static void main(String[] args) {
        List<String> files = new ArrayList<>(Arrays.asList(args));
        boolean keep = !files.remove(CHECK);
        int exitCode = 0;
        for (String file : files) {
            System.err.println("Running " + file);
            try {
                run(Path.of(file), System.getProperty("java.class.path"), keep);
            } catch (IOException e) {
                System.err.println(file + ": " + e.getMessage());
                exitCode = 1;
            } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
                exitCode = 1;
            }
        }
        // Threads of libraries that a cell started may run for ever.
        System.exit(exitCode);
    }

    /**
     * Runs a notebook.
     *
     * @param file an .ipynb file
     * @param classPath what its cells are compiled against
     * @param keepOutputs whether outputs are stored in the file, those of a cell that failed too
     * @throws IOException if the file is no notebook or a cell failed
     * @throws InterruptedException if the thread is interrupted
     */
    public static void run(Path file, String classPath, boolean keepOutputs)
            throws IOException, InterruptedException {
        System.setProperty("java.awt.headless", "true");
        Notebook notebook = Notebook.read(file);
        try (CellRunner runner = new CellRunner(classPath)) {
            for (Notebook.Cell cell : notebook.codeCells()) {
                runner.run(cell);
            }
        } finally {
            if (keepOutputs) {
                notebook.write();
            }
        }
    }
}
