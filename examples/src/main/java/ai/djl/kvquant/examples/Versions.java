/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import ai.djl.kvquant.llama.LlamaModel;
import java.io.IOException;
import java.io.InputStream;
import java.util.Properties;
import picocli.CommandLine.IVersionProvider;

/** The version of djl-kvquant. */
final class Versions implements IVersionProvider {

    private static final String MAVEN = "/META-INF/maven/ai.djl.kvquant/djl-kvquant/pom.properties";

    @Override
    public String[] getVersion() throws IOException {
        return new String[] {"djl-kvquant " + version()};
    }

    static String version() throws IOException {
        try (InputStream in = LlamaModel.class.getResourceAsStream(MAVEN)) {
            if (in == null) {
                return "(not packaged)";
            }
            Properties properties = new Properties();
            properties.load(in);
            return properties.getProperty("version");
        }
    }
}
