/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import com.hubspot.jinjava.interpret.JinjavaInterpreter;
import com.hubspot.jinjava.lib.tag.ForTag;
import com.hubspot.jinjava.tree.Node;
import com.hubspot.jinjava.tree.TagNode;
import com.hubspot.jinjava.util.ForLoop;
import com.hubspot.jinjava.util.ObjectIterator;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;

/**
 * The for block as in Jinja2: {@code for x in list if condition}, {@code else} for an empty list,
 * {@code loop.previtem} and {@code loop.nextitem}, and variables set in one turn are gone in the
 * next. Jinjava ignores the first two and keeps the variables.
 */
final class TemplateForTag extends ForTag {

    private static final long serialVersionUID = 1L;

    @Override
    @SuppressWarnings("try") // scopes are closed, not used
    public String interpret(TagNode node, JinjavaInterpreter interpreter) {
        Header header = Header.parse(node.getHelpers());
        Object collection =
                interpreter.resolveELExpression(header.collection(), node.getLineNumber());
        List<Object> items = new ArrayList<>();
        ForLoop all = ObjectIterator.getLoop(collection);
        while (all.hasNext()) {
            Object item = interpreter.wrap(all.next());
            if (header.condition().isEmpty() || isWanted(header, item, node, interpreter)) {
                items.add(item);
            }
        }
        StringBuilder output = new StringBuilder();
        Loop loop = new Loop(items);
        while (loop.hasNext()) {
            Object item = loop.next();
            try (JinjavaInterpreter.InterpreterScopeClosable scope = interpreter.enterScope()) {
                interpreter.getContext().put(LOOP, loop);
                assign(header, item, interpreter);
                renderBody(node, interpreter, loop, output);
            }
        }
        if (items.isEmpty()) {
            renderElse(node, interpreter, output);
        }
        return output.toString();
    }

    @SuppressWarnings("try")
    private static boolean isWanted(
            Header header, Object item, TagNode node, JinjavaInterpreter interpreter) {
        try (JinjavaInterpreter.InterpreterScopeClosable scope = interpreter.enterScope()) {
            assign(header, item, interpreter);
            return TemplateEngine.isTrue(
                    interpreter.resolveELExpression(header.condition(), node.getLineNumber()));
        }
    }

    private static void assign(Header header, Object item, JinjavaInterpreter interpreter) {
        if (header.variables().size() == 1) {
            interpreter.getContext().put(header.variables().get(0), item);
            return;
        }
        List<?> values;
        if (item instanceof Map.Entry<?, ?> entry) {
            values = Arrays.asList(entry.getKey(), entry.getValue());
        } else if (item instanceof List<?> list) {
            values = list;
        } else {
            values = List.of();
        }
        if (values.size() != header.variables().size()) {
            throw new ChatTemplateException(
                    "a loop over "
                            + header.collection()
                            + " takes items apart that do not have "
                            + header.variables().size()
                            + " values");
        }
        for (int i = 0; i < values.size(); i++) {
            interpreter.getContext().put(header.variables().get(i), values.get(i));
        }
    }

    private static void renderBody(
            TagNode node, JinjavaInterpreter interpreter, Loop loop, StringBuilder output) {
        for (Node child : node.getChildren()) {
            if (isElse(child)) {
                return;
            }
            output.append(child.render(interpreter));
            if (loop.isContinued()) {
                return;
            }
        }
    }

    private static void renderElse(
            TagNode node, JinjavaInterpreter interpreter, StringBuilder output) {
        boolean found = false;
        for (Node child : node.getChildren()) {
            if (found) {
                output.append(child.render(interpreter));
            }
            found |= isElse(child);
        }
    }

    private static boolean isElse(Node node) {
        return node instanceof TagNode tag && "else".equals(tag.getName());
    }

    /** The variable {@code loop}; public, since Jinjava reads its properties by reflection. */
    public static final class Loop extends ForLoop {

        private final List<Object> items;

        Loop(List<Object> items) {
            super(items.iterator(), items.size());
            this.items = items;
        }

        /**
         * Returns the item before this one.
         *
         * @return the item, {@code null} in the first turn
         */
        public Object getPrevitem() {
            return getIndex0() > 0 ? items.get(getIndex0() - 1) : null;
        }

        /**
         * Returns the item after this one.
         *
         * @return the item, {@code null} in the last turn
         */
        public Object getNextitem() {
            return getIndex() < items.size() ? items.get(getIndex()) : null;
        }
    }

    /** The parts of {@code for variables in collection if condition}. */
    private record Header(List<String> variables, String collection, String condition) {

        static Header parse(String helpers) {
            int in = keyword(helpers, "in", 0);
            if (in < 0) {
                throw new ChatTemplateException("'for " + helpers.strip() + "' has no 'in'");
            }
            String names = helpers.substring(0, in).replaceAll("[()\\s]", "");
            int filter = keyword(helpers, "if", in + 2);
            int end = filter < 0 ? helpers.length() : filter;
            return new Header(
                    List.of(names.split(",")),
                    helpers.substring(in + 2, end).strip(),
                    filter < 0 ? "" : helpers.substring(filter + 2).strip());
        }

        /** Finds a word outside strings and brackets. */
        private static int keyword(String text, String word, int from) {
            int depth = 0;
            char quote = 0;
            for (int i = from; i < text.length(); i++) {
                char c = text.charAt(i);
                if (quote != 0) {
                    i += c == '\\' ? 1 : 0;
                    quote = c == quote ? 0 : quote;
                } else if (c == '\'' || c == '"') {
                    quote = c;
                } else if ("([{".indexOf(c) >= 0) {
                    depth++;
                } else if (")]}".indexOf(c) >= 0) {
                    depth--;
                } else if (depth == 0 && isWordAt(text, word, i)) {
                    return i;
                }
            }
            return -1;
        }

        private static boolean isWordAt(String text, String word, int at) {
            int end = at + word.length();
            return text.startsWith(word, at)
                    && (at == 0 || !Character.isJavaIdentifierPart(text.charAt(at - 1)))
                    && (end == text.length() || !Character.isJavaIdentifierPart(text.charAt(end)));
        }
    }
}
