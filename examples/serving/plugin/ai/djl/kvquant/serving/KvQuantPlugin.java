/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.serving;

import ai.djl.serving.plugins.RequestHandler;
import ai.djl.serving.wlm.ModelInfo;
import ai.djl.serving.wlm.util.EventManager;
import ai.djl.serving.wlm.util.ModelServerListenerAdapter;
import io.netty.channel.ChannelHandlerContext;
import io.netty.handler.codec.http.FullHttpRequest;
import io.netty.handler.codec.http.QueryStringDecoder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Properties;

/**
 * A plugin of DJL Serving: a model of the engine PyTorch whose configuration says {@code
 * option.kv_cache_dtype} is loaded by the engine KvQuant, so that this one line suffices.
 *
 * <p>DJL Serving makes plugins of request handlers only. This one handles no requests: it listens
 * to models that are about to be configured.
 */
public final class KvQuantPlugin implements RequestHandler<Void> {

    private static final String FLAG = "kv_cache_dtype";
    private static final String FACTORY = "translatorFactory";

    /** Creates the plugin, which begins to listen. */
    public KvQuantPlugin() {
        EventManager.getInstance()
                .addListener(
                        new ModelServerListenerAdapter() {
                            @Override
                            public void onModelDownloaded(ModelInfo<?, ?> model, Path directory) {
                                configure(model.getProperties(), model.getModelDir());
                            }
                        });
    }

    /** Changes the properties of models of the engine PyTorch that have the flag. */
    static void configure(Properties properties, Path directory) {
        boolean flag = properties.containsKey("option." + FLAG) || properties.containsKey(FLAG);
        if (!flag || !"PyTorch".equals(properties.getProperty("engine"))) {
            return;
        }
        properties.setProperty("engine", "KvQuant");
        if (Files.isRegularFile(directory.resolve("config.json"))) {
            properties.putIfAbsent(FACTORY, "ai.djl.kvquant.translate.KvQuantTranslatorFactory");
        }
    }

    /** {@inheritDoc} */
    @Override
    public boolean acceptInboundMessage(Object message) {
        return false;
    }

    /** {@inheritDoc} */
    @Override
    public Void handleRequest(
            ChannelHandlerContext context,
            FullHttpRequest request,
            QueryStringDecoder decoder,
            String[] segments) {
        throw new IllegalStateException("This plugin accepts no requests.");
    }
}
