/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples.notebook;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.Locale;
import java.util.stream.Collectors;
import jdk.jshell.EvalException;
import jdk.jshell.ExpressionSnippet;
import jdk.jshell.JShell;
import jdk.jshell.JShellException;
import jdk.jshell.Snippet;
import jdk.jshell.SnippetEvent;
import jdk.jshell.SourceCodeAnalysis;
import jdk.jshell.SourceCodeAnalysis.CompletionInfo;
import jdk.jshell.VarSnippet;

/**
 * Runs cells one after the other in one jshell within this JVM. What they print is kept for the
 * notebook and shown on the console as well.
 */
final class CellRunner implements AutoCloseable {

    private static final List<String> STARTUP =
            List.of(
                    "import java.io.*;",
                    "import java.nio.file.*;",
                    "import java.util.*;",
                    "import java.util.function.*;",
                    "import java.util.stream.*;",
                    "void display(Object o) { " + Display.class.getName() + ".show(o); }");

    private final JShell shell;
    private final MavenLines maven;
    private final PrintStream console = System.out;
    private final ByteArrayOutputStream printed = new ByteArrayOutputStream();
    private int count;

    CellRunner(String classPath) {
        shell = JShell.builder().executionEngine("local").build();
        shell.addToClasspath(classPath);
        maven = new MavenLines(classPath);
        STARTUP.forEach(shell::eval);
    }

    /** Runs a cell; its outputs are kept in it, those of an error too. */
    void run(Notebook.Cell cell) throws IOException, InterruptedException {
        Display.begin();
        ++count;
        System.setOut(new PrintStream(new Copy(), true, StandardCharsets.UTF_8));
        try {
            evaluate(withoutMagic(cell.source()));
        } catch (CellException e) {
            flush();
            Display.error(e.name, e.getMessage());
            throw new IOException("Cell " + count + ": " + e.name + ": " + e.getMessage(), e);
        } finally {
            flush();
            System.setOut(console);
            cell.setOutputs(count, Display.end());
        }
    }

    private void flush() {
        Display.stream(printed.toString(StandardCharsets.UTF_8));
        printed.reset();
    }

    private String withoutMagic(String source) throws CellException, InterruptedException {
        StringBuilder code = new StringBuilder();
        for (String line : source.split("\n", -1)) {
            if (line.startsWith("%")) {
                addToClassPath(line);
                // Lines keep their numbers.
                code.append('\n');
            } else {
                code.append(line).append('\n');
            }
        }
        return code.toString();
    }

    private void addToClassPath(String line) throws CellException, InterruptedException {
        try {
            String added = maven.resolve(line);
            if (!added.isEmpty()) {
                shell.addToClasspath(added);
            }
        } catch (IOException e) {
            throw new CellException(e.getClass().getName(), e.getMessage());
        }
    }

    private void evaluate(String code) throws CellException {
        boolean showsResult = !code.stripTrailing().endsWith(";");
        Snippet last = null;
        SourceCodeAnalysis analysis = shell.sourceCodeAnalysis();
        String rest = code;
        while (!rest.isBlank()) {
            CompletionInfo info = analysis.analyzeCompletion(rest);
            if (info.completeness() == SourceCodeAnalysis.Completeness.EMPTY) {
                break;
            }
            String source = info.completeness().isComplete() ? info.source() : rest;
            last = evaluateSnippet(source);
            rest = info.completeness().isComplete() ? info.remaining() : "";
        }
        String name = nameOfValue(last);
        if (showsResult && name != null) {
            flush();
            evaluateSnippet(Display.class.getName() + ".result(" + name + ", " + count + ");");
        }
    }

    /** The variable that has the value of an expression; null for all else. */
    private static String nameOfValue(Snippet snippet) {
        if (snippet instanceof ExpressionSnippet expression) {
            return expression.name();
        }
        boolean temporary =
                snippet != null && snippet.subKind() == Snippet.SubKind.TEMP_VAR_EXPRESSION_SUBKIND;
        return temporary ? ((VarSnippet) snippet).name() : null;
    }

    private Snippet evaluateSnippet(String source) throws CellException {
        Snippet snippet = null;
        for (SnippetEvent event : shell.eval(source)) {
            if (event.causeSnippet() != null) {
                continue;
            }
            snippet = event.snippet();
            if (event.status() == Snippet.Status.REJECTED) {
                throw new CellException(
                        "compilation", diagnostics(snippet) + "\n" + source.strip());
            }
            if (event.exception() != null) {
                throw failure(event.exception());
            }
        }
        return snippet;
    }

    private String diagnostics(Snippet snippet) {
        return shell.diagnostics(snippet)
                .map(diagnostic -> diagnostic.getMessage(Locale.ROOT))
                .collect(Collectors.joining("\n"));
    }

    private static CellException failure(JShellException exception) {
        if (exception instanceof EvalException thrown) {
            return new CellException(thrown.getExceptionClassName(), thrown.getMessage());
        }
        return new CellException(exception.getClass().getName(), exception.getMessage());
    }

    @Override
    public void close() {
        shell.close();
    }

    /** Why a cell failed. */
    private static final class CellException extends Exception {

        private static final long serialVersionUID = 1L;

        private final String name;

        CellException(String name, String message) {
            super(String.valueOf(message));
            this.name = name;
        }
    }

    /** Writes to the console and to what is kept. */
    private final class Copy extends OutputStream {

        @Override
        public void write(int b) {
            printed.write(b);
            console.write(b);
        }

        @Override
        public void write(byte[] bytes, int offset, int length) {
            printed.write(bytes, offset, length);
            console.write(bytes, offset, length);
        }

        @Override
        public void flush() {
            console.flush();
        }
    }
}
