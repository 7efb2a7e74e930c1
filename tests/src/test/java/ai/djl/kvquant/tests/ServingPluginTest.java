/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;

import java.io.InputStream;
import java.lang.reflect.Method;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import javax.tools.JavaCompiler;
import javax.tools.ToolProvider;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * The plugin for DJL Serving, against classes with the signatures of DJL Serving 0.36: of its jars
 * Maven Central has none.
 */
class ServingPluginTest {

    private static final Path PLUGIN =
            DefaultModel.repositoryRoot().resolve("examples/serving/plugin");

    /** What the plugin uses of DJL Serving and Netty. */
    private static final Map<String, String> API =
            Map.of(
                    "io.netty.channel.ChannelHandlerContext",
                    "public interface ChannelHandlerContext {}",
                    "io.netty.handler.codec.http.FullHttpRequest",
                    "public interface FullHttpRequest {}",
                    "io.netty.handler.codec.http.QueryStringDecoder",
                    "public class QueryStringDecoder {}",
                    "ai.djl.serving.plugins.RequestHandler",
                    """
                    import io.netty.channel.ChannelHandlerContext;
                    import io.netty.handler.codec.http.*;
                    public interface RequestHandler<T> {
                        boolean acceptInboundMessage(Object msg);
                        T handleRequest(ChannelHandlerContext ctx, FullHttpRequest req,
                                QueryStringDecoder decoder, String[] segments);
                    }
                    """,
                    "ai.djl.serving.wlm.ModelInfo",
                    """
                    public final class ModelInfo<I, O> {
                        private final java.util.Properties properties;
                        private final java.nio.file.Path directory;
                        public ModelInfo(java.util.Properties p, java.nio.file.Path d) {
                            properties = p;
                            directory = d;
                        }
                        public java.util.Properties getProperties() { return properties; }
                        public java.nio.file.Path getModelDir() { return directory; }
                    }
                    """,
                    "ai.djl.serving.wlm.util.ModelServerListenerAdapter",
                    """
                    public abstract class ModelServerListenerAdapter {
                        public void onModelDownloaded(
                                ai.djl.serving.wlm.ModelInfo<?, ?> m, java.nio.file.Path p) {}
                    }
                    """,
                    "ai.djl.serving.wlm.util.EventManager",
                    """
                    public final class EventManager {
                        private static final EventManager INSTANCE = new EventManager();
                        private ModelServerListenerAdapter listener;
                        public static EventManager getInstance() { return INSTANCE; }
                        public void addListener(ModelServerListenerAdapter l) { listener = l; }
                        public void onModelDownloaded(
                                ai.djl.serving.wlm.ModelInfo<?, ?> m, java.nio.file.Path p) {
                            listener.onModelDownloaded(m, p);
                        }
                    }
                    """);

    @TempDir Path directory;
    private URLClassLoader loader;

    @BeforeEach
    void compile() throws Exception {
        List<String> arguments = new ArrayList<>(List.of("-d", directory.toString()));
        for (Map.Entry<String, String> entry : API.entrySet()) {
            String name = entry.getKey();
            int dot = name.lastIndexOf('.');
            Path file = directory.resolve(name.replace('.', '/') + ".java");
            Files.createDirectories(file.getParent());
            String source = "package " + name.substring(0, dot) + ";\n" + entry.getValue();
            arguments.add(Files.writeString(file, source).toString());
        }
        arguments.add(PLUGIN.resolve("ai/djl/kvquant/serving/KvQuantPlugin.java").toString());
        JavaCompiler compiler = ToolProvider.getSystemJavaCompiler();
        assertNotNull(compiler, "the tests need a JDK");
        assertEquals(0, compiler.run(null, null, null, arguments.toArray(String[]::new)));
        loader = new URLClassLoader(new URL[] {directory.toUri().toURL()}, null);
    }

    /** Tells the plugin of a model, as DJL Serving does, and returns its properties then. */
    private Properties configured(Path model, String... properties) throws Exception {
        Properties definition = new Properties();
        try (InputStream in = Files.newInputStream(PLUGIN.resolve("META-INF/plugin.definition"))) {
            definition.load(in);
        }
        loader.loadClass(definition.getProperty("export")).getConstructor().newInstance();
        Properties values = new Properties();
        for (String property : properties) {
            String[] pair = property.split("=", 2);
            values.setProperty(pair[0], pair[1]);
        }
        Class<?> info = loader.loadClass("ai.djl.serving.wlm.ModelInfo");
        Object modelInfo =
                info.getConstructor(Properties.class, Path.class).newInstance(values, model);
        Class<?> manager = loader.loadClass("ai.djl.serving.wlm.util.EventManager");
        Method tell = manager.getMethod("onModelDownloaded", info, Path.class);
        tell.invoke(manager.getMethod("getInstance").invoke(null), modelInfo, null);
        return values;
    }

    @Test
    void theFlagAloneSuffices() throws Exception {
        Path model = Files.createDirectory(directory.resolve("model"));
        SmallModel.in(model).tokenizer();
        Properties properties =
                configured(model, "engine=PyTorch", "option.kv_cache_dtype=rotatekv2");
        StringBuilder file = new StringBuilder();
        properties.forEach((name, value) -> file.append(name + "=" + value + "\n"));
        Files.writeString(model.resolve("serving.properties"), file);
        try (ServedModel served = ServedModel.load(model)) {
            ServedModel.Response response = served.ask("{\"inputs\": \"w5\"}");
            assertEquals(200, response.code());
            assertEquals("rotatekv2", response.headers().get("x-kvquant-kv-dtype"));
        }
    }

    @Test
    void leavesOtherModelsAlone() throws Exception {
        Path model = Files.createDirectory(directory.resolve("model"));
        for (String[] properties :
                List.of(
                        new String[] {"engine=PyTorch"},
                        new String[] {"engine=Python", "option.kv_cache_dtype=fp8"},
                        new String[] {"option.kv_cache_dtype=fp8"})) {
            Properties after = configured(model, properties);
            assertEquals(properties.length, after.size());
            for (String property : properties) {
                String[] pair = property.split("=", 2);
                assertEquals(pair[1], after.getProperty(pair[0]));
            }
        }
        Properties own =
                configured(
                        model,
                        "engine=PyTorch",
                        "kv_cache_dtype=int2",
                        "translatorFactory=a.Factory");
        assertEquals("KvQuant", own.getProperty("engine"));
        assertEquals("a.Factory", own.getProperty("translatorFactory"));
    }
}
