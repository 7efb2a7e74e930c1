/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import java.beans.FeatureDescriptor;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.Iterator;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import jinjava.javax.el.ELContext;
import jinjava.javax.el.ELResolver;

/**
 * Python's methods of strings, and {@code get} with a default of maps.
 *
 * <p>All method calls on strings end here: Java's own methods share some names and mean something
 * else ({@code split} and {@code replaceAll} take patterns).
 */
final class TemplateMethods extends ELResolver {

    /** What stands for the slice {@code [::-1]}, which Jinjava cannot parse. */
    static final String REVERSED = "__reversed__";

    @Override
    public Object invoke(
            ELContext context, Object base, Object method, Class<?>[] types, Object[] parameters) {
        Object[] arguments = parameters == null ? new Object[0] : parameters;
        if (base instanceof String text) {
            context.setPropertyResolved(true);
            return call(text, String.valueOf(method), arguments);
        }
        if (base instanceof Map<?, ?> map && "get".equals(method) && arguments.length == 2) {
            context.setPropertyResolved(true);
            return map.containsKey(arguments[0]) ? map.get(arguments[0]) : arguments[1];
        }
        if (base instanceof List<?> list && REVERSED.equals(method)) {
            context.setPropertyResolved(true);
            List<Object> reversed = new ArrayList<>(list);
            Collections.reverse(reversed);
            return reversed;
        }
        return null;
    }

    /** Gives single characters of strings; an index may count from the end. */
    @Override
    public Object getValue(ELContext context, Object base, Object property) {
        if (!(base instanceof String text) || !String.valueOf(property).matches("-?\\d+")) {
            return null;
        }
        context.setPropertyResolved(true);
        int length = text.codePointCount(0, text.length());
        int index = Integer.parseInt(String.valueOf(property));
        index = index < 0 ? index + length : index;
        if (index < 0 || index >= length) {
            return null;
        }
        return Character.toString(text.codePointAt(text.offsetByCodePoints(0, index)));
    }

    private static Object call(String text, String method, Object[] arguments) {
        return switch (method) {
            case REVERSED -> new StringBuilder(text).reverse().toString();
            case "strip" -> strip(text, arguments, true, true);
            case "lstrip" -> strip(text, arguments, true, false);
            case "rstrip" -> strip(text, arguments, false, true);
            case "startswith" -> anyOf(arguments).stream().anyMatch(text::startsWith);
            case "endswith" -> anyOf(arguments).stream().anyMatch(text::endsWith);
            case "removeprefix" -> {
                String prefix = string(method, arguments, 0);
                yield text.startsWith(prefix) ? text.substring(prefix.length()) : text;
            }
            case "removesuffix" -> {
                String suffix = string(method, arguments, 0);
                yield text.endsWith(suffix)
                        ? text.substring(0, text.length() - suffix.length())
                        : text;
            }
            case "split" -> split(text, arguments);
            case "splitlines" -> text.lines().toList();
            case "replace" -> replace(text, arguments);
            case "join" -> join(text, arguments);
            case "find" -> (long) find(text, string(method, arguments, 0));
            case "count" -> (long) split(text, new Object[] {arguments[0]}).size() - 1;
            case "upper" -> text.toUpperCase(Locale.ROOT);
            case "lower" -> text.toLowerCase(Locale.ROOT);
            case "capitalize" -> capitalize(text);
            case "title" -> title(text);
            case "isdigit" -> !text.isEmpty() && text.chars().allMatch(Character::isDigit);
            case "isspace" -> !text.isEmpty() && text.isBlank();
            default ->
                    throw new ChatTemplateException(
                            "the string method '" + method + "' is not supported");
        };
    }

    private static String strip(String text, Object[] arguments, boolean left, boolean right) {
        String set = arguments.length == 0 ? null : (String) arguments[0];
        int start = 0;
        int end = text.length();
        while (left && start < end && isIn(set, text.charAt(start))) {
            start++;
        }
        while (right && end > start && isIn(set, text.charAt(end - 1))) {
            end--;
        }
        return text.substring(start, end);
    }

    private static boolean isIn(String set, char c) {
        return set == null
                ? Character.isWhitespace(c) || Character.isSpaceChar(c)
                : set.indexOf(c) >= 0;
    }

    private static List<String> anyOf(Object[] arguments) {
        Object value = arguments.length == 0 ? "" : arguments[0];
        return value instanceof Iterable<?> list ? strings(list) : List.of(String.valueOf(value));
    }

    private static List<String> split(String text, Object[] arguments) {
        if (arguments.length == 0 || arguments[0] == null) {
            String stripped = strip(text, new Object[0], true, true);
            return stripped.isEmpty() ? List.of() : Arrays.asList(stripped.split("\\s+"));
        }
        String separator = String.valueOf(arguments[0]);
        int most = arguments.length > 1 ? ((Number) arguments[1]).intValue() : -1;
        List<String> parts = new ArrayList<>();
        int from = 0;
        int at = text.indexOf(separator);
        while (at >= 0 && (most < 0 || parts.size() < most)) {
            parts.add(text.substring(from, at));
            from = at + separator.length();
            at = text.indexOf(separator, from);
        }
        parts.add(text.substring(from));
        return parts;
    }

    private static String replace(String text, Object[] arguments) {
        String from = string("replace", arguments, 0);
        String to = string("replace", arguments, 1);
        if (arguments.length == 2) {
            return text.replace(from, to);
        }
        return String.join(to, split(text, new Object[] {from, arguments[2]}));
    }

    private static String join(String separator, Object[] arguments) {
        if (arguments.length == 1 && arguments[0] instanceof Iterable<?> list) {
            return String.join(separator, strings(list));
        }
        throw new ChatTemplateException("the string method 'join' needs a list");
    }

    private static int find(String text, String part) {
        int at = text.indexOf(part);
        return at < 0 ? -1 : text.codePointCount(0, at);
    }

    private static String capitalize(String text) {
        return text.isEmpty()
                ? text
                : text.substring(0, 1).toUpperCase(Locale.ROOT)
                        + text.substring(1).toLowerCase(Locale.ROOT);
    }

    private static String title(String text) {
        StringBuilder result = new StringBuilder();
        boolean inWord = false;
        for (char c : text.toCharArray()) {
            result.append(inWord ? Character.toLowerCase(c) : Character.toUpperCase(c));
            inWord = Character.isLetter(c);
        }
        return result.toString();
    }

    private static List<String> strings(Iterable<?> list) {
        List<String> result = new ArrayList<>();
        list.forEach(each -> result.add(String.valueOf(each)));
        return result;
    }

    private static String string(String method, Object[] arguments, int index) {
        if (index < arguments.length && arguments[index] instanceof String text) {
            return text;
        }
        throw new ChatTemplateException(
                "the string method '" + method + "' needs a string as argument " + (index + 1));
    }

    @Override
    public Class<?> getType(ELContext context, Object base, Object property) {
        return null;
    }

    @Override
    public void setValue(ELContext context, Object base, Object property, Object value) {
        // Nothing here can be set; the next resolver is asked.
    }

    @Override
    public boolean isReadOnly(ELContext context, Object base, Object property) {
        return true;
    }

    @Override
    public Iterator<FeatureDescriptor> getFeatureDescriptors(ELContext context, Object base) {
        return null;
    }

    @Override
    public Class<?> getCommonPropertyType(ELContext context, Object base) {
        return null;
    }
}
