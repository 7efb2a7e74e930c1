/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import java.util.Map;

/** JSON objects of one line. */
final class Json {

    private static final Gson GSON =
            new GsonBuilder().disableHtmlEscaping().serializeSpecialFloatingPointValues().create();

    private Json() {}

    static String line(Map<String, ?> object) {
        return GSON.toJson(object);
    }

    /** Rounded to what a measurement is good for. */
    static double round(double value, int decimals) {
        double factor = Math.pow(10, decimals);
        return Math.round(value * factor) / factor;
    }
}
