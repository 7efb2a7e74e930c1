/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import java.util.List;

/**
 * Finds stop strings in a text that arrives in pieces.
 *
 * <p>The result does not depend on how the text is cut into pieces: the stop string that is
 * complete first wins, and of several that end at the same character the longest. Text that may be
 * the beginning of a stop string is held back.
 */
final class StopStrings {

    private final List<String> stops;
    private final StringBuilder held = new StringBuilder();
    private boolean found;

    StopStrings(List<String> stops) {
        this.stops = stops;
    }

    /** Appends a piece and returns the text that is certain to stand before any stop string. */
    String add(String piece) {
        if (stops.isEmpty() || found) {
            return found ? "" : piece;
        }
        int checked = held.length();
        held.append(piece);
        for (int end = checked + 1; end <= held.length(); end++) {
            int start = longestStopEndingAt(end);
            if (start >= 0) {
                found = true;
                return take(start, held.length());
            }
        }
        int safe = held.length() - longestPartialStop();
        return take(safe, safe);
    }

    /** Ends the text and returns what was held back; nothing after a stop string. */
    String flush() {
        return take(held.length(), held.length());
    }

    boolean found() {
        return found;
    }

    private int longestStopEndingAt(int end) {
        int start = -1;
        for (String stop : stops) {
            int from = end - stop.length();
            if (from >= 0 && matches(stop, from, stop.length()) && (start < 0 || from < start)) {
                start = from;
            }
        }
        return start;
    }

    /** Returns the length of the longest end of the text that begins a stop string. */
    private int longestPartialStop() {
        int longest = 0;
        for (String stop : stops) {
            int length = Math.min(stop.length() - 1, held.length());
            while (length > longest && !matches(stop, held.length() - length, length)) {
                length--;
            }
            longest = Math.max(longest, length);
        }
        return longest;
    }

    private boolean matches(String stop, int from, int length) {
        for (int i = 0; i < length; i++) {
            if (held.charAt(from + i) != stop.charAt(i)) {
                return false;
            }
        }
        return true;
    }

    private String take(int end, int drop) {
        String text = held.substring(0, end);
        held.delete(0, drop);
        return text;
    }
}
