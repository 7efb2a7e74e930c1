/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import com.hubspot.jinjava.interpret.JinjavaInterpreter;
import java.time.ZonedDateTime;
import java.time.format.DateTimeFormatter;
import java.util.Locale;

/**
 * The functions that HuggingFace gives to chat templates. Public, since Jinjava calls them by
 * reflection.
 */
public final class TemplateFunctions {

    /** The variable that holds the time of rendering. */
    static final String NOW = "__now__";

    private TemplateFunctions() {}

    /**
     * Refuses the messages, by an exception that {@link ChatTemplate} reports.
     *
     * @param message what is wrong with them
     * @return never
     */
    public static String raise_exception(String message) {
        throw new Refusal(message);
    }

    /** Tells a template's own refusal from a template that cannot be rendered. */
    static final class Refusal extends RuntimeException {

        private static final long serialVersionUID = 1L;

        Refusal(String message) {
            super(message);
        }
    }

    /**
     * Formats the time of rendering.
     *
     * @param format the format as Python's {@code strftime} takes it
     * @return the text
     */
    public static String strftime_now(String format) {
        Object now = JinjavaInterpreter.getCurrent().getContext().get(NOW);
        StringBuilder result = new StringBuilder();
        for (int i = 0; i < format.length(); i++) {
            char c = format.charAt(i);
            if (c != '%' || i + 1 == format.length()) {
                result.append(c);
                continue;
            }
            char code = format.charAt(++i);
            boolean padded = code != '-' || i + 1 == format.length();
            result.append(field((ZonedDateTime) now, padded ? code : format.charAt(++i), padded));
        }
        return result.toString();
    }

    private static String field(ZonedDateTime now, char code, boolean padded) {
        String pattern =
                switch (code) {
                    case 'd' -> padded ? "dd" : "d";
                    case 'm' -> padded ? "MM" : "M";
                    case 'H' -> padded ? "HH" : "H";
                    case 'I' -> padded ? "hh" : "h";
                    case 'M' -> padded ? "mm" : "m";
                    case 'S' -> padded ? "ss" : "s";
                    case 'j' -> padded ? "DDD" : "D";
                    case 'Y' -> "yyyy";
                    case 'y' -> "yy";
                    case 'b' -> "MMM";
                    case 'B' -> "MMMM";
                    case 'a' -> "EEE";
                    case 'A' -> "EEEE";
                    case 'p' -> "a";
                    case 'F' -> "yyyy-MM-dd";
                    case 'T' -> "HH:mm:ss";
                    case '%' -> "'%'";
                    default ->
                            throw new ChatTemplateException("strftime_now does not know %" + code);
                };
        return DateTimeFormatter.ofPattern(pattern, Locale.US).format(now);
    }
}
