/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import com.hubspot.jinjava.interpret.JinjavaInterpreter;
import com.hubspot.jinjava.lib.exptest.ExpTest;
import com.hubspot.jinjava.lib.filter.Filter;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;

/** Filters and tests that Jinjava lacks or means otherwise than Jinja2 does. */
final class TemplateFilters {

    static final List<Filter> ALL = List.of(new ToJson(), new Items());

    static final List<ExpTest> TESTS =
            List.of(new IsIterable("iterable"), new IsIterable("sequence"));

    private TemplateFilters() {}

    /** Writes JSON with the spaces of Python's json module and, unlike Jinja2, no HTML escapes. */
    private static final class ToJson implements Filter {

        @Override
        public String getName() {
            return "tojson";
        }

        @Override
        public Object filter(
                Object value,
                JinjavaInterpreter interpreter,
                Object[] arguments,
                Map<String, Object> named) {
            Object indent = arguments.length > 0 ? arguments[0] : named.get("indent");
            StringBuilder json = new StringBuilder();
            write(value, indent instanceof Number number ? number.intValue() : -1, 0, json);
            return json.toString();
        }

        @Override
        public Object filter(Object value, JinjavaInterpreter interpreter, String... arguments) {
            return filter(value, interpreter, arguments, Map.of());
        }

        private static void write(Object value, int indent, int level, StringBuilder json) {
            if (value instanceof Map<?, ?> map) {
                List<Runnable> entries = new ArrayList<>();
                map.forEach(
                        (key, each) ->
                                entries.add(
                                        () -> {
                                            quote(String.valueOf(key), json);
                                            json.append(": ");
                                            write(each, indent, level + 1, json);
                                        }));
                writeAll("{}", entries, indent, level, json);
            } else if (value instanceof Iterable<?> list) {
                List<Runnable> entries = new ArrayList<>();
                list.forEach(each -> entries.add(() -> write(each, indent, level + 1, json)));
                writeAll("[]", entries, indent, level, json);
            } else if (value == null || value instanceof Number || value instanceof Boolean) {
                json.append(value);
            } else {
                quote(value.toString(), json);
            }
        }

        private static void writeAll(
                String brackets,
                List<Runnable> entries,
                int indent,
                int level,
                StringBuilder json) {
            json.append(brackets.charAt(0));
            for (int i = 0; i < entries.size(); i++) {
                json.append(i == 0 ? "" : indent < 0 ? ", " : ",");
                newLine(indent, level + 1, json);
                entries.get(i).run();
            }
            if (!entries.isEmpty()) {
                newLine(indent, level, json);
            }
            json.append(brackets.charAt(1));
        }

        private static void newLine(int indent, int level, StringBuilder json) {
            if (indent >= 0) {
                json.append('\n').append(" ".repeat(indent * level));
            }
        }

        private static void quote(String text, StringBuilder json) {
            json.append('"');
            for (char c : text.toCharArray()) {
                switch (c) {
                    case '"' -> json.append("\\\"");
                    case '\\' -> json.append("\\\\");
                    case '\n' -> json.append("\\n");
                    case '\r' -> json.append("\\r");
                    case '\t' -> json.append("\\t");
                    case '\b' -> json.append("\\b");
                    case '\f' -> json.append("\\f");
                    default -> json.append(c < ' ' ? String.format("\\u%04x", (int) c) : c);
                }
            }
            json.append('"');
        }
    }

    /** Gives the entries of a map. */
    private static final class Items implements Filter {

        @Override
        public String getName() {
            return "items";
        }

        @Override
        public Object filter(Object value, JinjavaInterpreter interpreter, String... arguments) {
            return value instanceof Map<?, ?> map ? new ArrayList<>(map.entrySet()) : List.of();
        }
    }

    /** Holds for strings too, as in Python. */
    private record IsIterable(String name) implements ExpTest {

        @Override
        public String getName() {
            return name;
        }

        @Override
        public boolean evaluate(Object value, JinjavaInterpreter interpreter, Object... arguments) {
            return value instanceof Iterable<?>
                    || value instanceof Map<?, ?>
                    || value instanceof CharSequence;
        }
    }
}
