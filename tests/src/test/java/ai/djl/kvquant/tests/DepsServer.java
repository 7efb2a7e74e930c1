/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import ai.djl.engine.Engine;
import ai.djl.engine.EngineProvider;
import ai.djl.kvquant.tests.ServedModel.Response;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.ServiceLoader;

/**
 * A program that finds the extension where DJL Serving finds it: on a child class loader for the
 * jars in deps/, which becomes the context class loader. Names no class of the extension.
 */
final class DepsServer {

    private DepsServer() {}

    /**
     * Answers a request.
     *
     * @param args the jars, separated as in a class path; the model directory; the request
     */
    public static void main(String[] args) throws Exception {
        List<URL> jars = new ArrayList<>();
        for (String jar : args[0].split(System.getProperty("path.separator"))) {
            jars.add(Path.of(jar).toUri().toURL());
        }
        ClassLoader app = DepsServer.class.getClassLoader();
        try (URLClassLoader deps = new URLClassLoader(jars.toArray(URL[]::new), app)) {
            requireHidden(app);
            for (EngineProvider provider : ServiceLoader.load(EngineProvider.class, deps)) {
                if (!Engine.hasEngine(provider.getEngineName())) {
                    Engine.registerEngine(provider);
                }
            }
            Thread.currentThread().setContextClassLoader(deps);
            try (ServedModel served = ServedModel.load(Path.of(args[1]))) {
                Response response = served.ask(args[2]);
                System.out.println(
                        "loader " + served.model().getBlock().getClass().getClassLoader());
                System.out.println("response " + response.code() + " " + response.body());
            }
        }
    }

    private static void requireHidden(ClassLoader app) {
        try {
            Class.forName("ai.djl.kvquant.engine.KvQuantEngineProvider", false, app);
        } catch (ClassNotFoundException e) {
            return;
        }
        throw new IllegalStateException("The extension is on the class path of the program.");
    }
}
