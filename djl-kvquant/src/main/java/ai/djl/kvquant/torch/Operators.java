/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.torch;

import ai.djl.Device;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import ai.djl.pytorch.jni.JniUtils;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Locale;

/**
 * The operators that do not belong to a layer's step: what a cache needs to be laid out and copied,
 * and the library's settings.
 */
public final class Operators implements AutoCloseable {

    private static final String METHODS =
            "  def layout(self: __torch__.M, params: Tensor) -> Tensor:\n"
                    + "    return ops.kvquant.layout(params)\n"
                    + "  def configure(self: __torch__.M, settings: Tensor) -> Tensor:\n"
                    + "    return ops.kvquant.configure(settings)\n"
                    + "  def convert(self: __torch__.M, x: Tensor, dtype: int) -> Tensor:\n"
                    + "    return torch.to(x, dtype)\n"
                    + "  def view_bfloat16(self: __torch__.M, x: Tensor) -> Tensor:\n"
                    + "    return ops.kvquant.view_bfloat16(x)\n"
                    + "  def move(self: __torch__.M, x: Tensor, device: Tensor, dtype: int) ->"
                    + " Tensor:\n"
                    + "    return torch.to(x, ops.prim.device(device), dtype)\n"
                    + "  def join(self: __torch__.M, parts: List[Tensor]) -> Tensor:\n"
                    + "    return torch.cat(parts)\n"
                    + "  def random(self: __torch__.M, sizes: List[int], scale: float, mean: float,"
                    + " dtype: int, device: Tensor) -> Tensor:\n"
                    + "    x = torch.randn(sizes, dtype=dtype, device=ops.prim.device(device))\n"
                    + "    return torch.add_(torch.mul_(x, scale), mean)\n"
                    + "  def device_info(self: __torch__.M, device: Tensor) -> Tensor:\n"
                    + "    return ops.kvquant.device_info(device)\n"
                    + "  def copy_rows(self: __torch__.M, pools: List[Tensor], source: Tensor,"
                    + " target: Tensor) -> Tensor:\n"
                    + "    for i in range(torch.len(pools)):\n"
                    + "      pool = pools[i]\n"
                    + "      _0 = torch.index_copy_(pool, 0, target, torch.index_select(pool, 0,"
                    + " source))\n"
                    + "    return source\n";
    private static final int FLOAT32 = 6;
    private static final int FLOAT16 = 5;
    private static final int BFLOAT16 = 15;

    private final NDManager manager;
    private final NDManager host;
    private final TorchModule module;

    /** A tensor on the device. */
    private final NDArray place;

    /**
     * Loads the operators; their threads follow libtorch's setting.
     *
     * @param parent a manager of the PyTorch engine on the device to use
     * @throws ai.djl.engine.EngineException if there are no operators for the device
     */
    public Operators(NDManager parent) {
        manager = parent.newSubManager();
        host = manager.newSubManager(Device.cpu());
        try {
            module = TorchModule.load(host, TorchArchive.write(METHODS));
            if (onGpu()) {
                OperatorLibrary.loadCuda();
            }
            place = manager.create(new Shape(1), DataType.FLOAT32);
            if (onGpu()) {
                gpu();
            }
            configure(JniUtils.getNumThreads(), -1);
        } catch (RuntimeException | Error e) {
            manager.close();
            throw e;
        }
    }

    /**
     * Tells whether tensors are on a GPU.
     *
     * @return true if so
     */
    public boolean onGpu() {
        return manager.getDevice().isGpu();
    }

    /**
     * Looks at the GPU.
     *
     * @return what it is and how much memory is left
     * @throws ai.djl.engine.EngineException if the operators can not run on it
     */
    public GpuInfo gpu() {
        try (NDManager scope = host.newSubManager()) {
            return GpuInfo.of(module.run(scope, "device_info", place).get(0).toLongArray());
        }
    }

    /** Gives memory of the GPU that libtorch keeps for later back to it. */
    public void releaseCachedMemory() {
        if (onGpu()) {
            JniUtils.emptyCudaCache();
        }
    }

    /**
     * Creates a tensor of bytes on the CPU, where operators read their parameters.
     *
     * @param owner the manager that the tensor is attached to
     * @param bytes a direct buffer
     * @return UINT8 [bytes]
     */
    public NDArray hostBytes(NDManager owner, ByteBuffer bytes) {
        NDArray array = host.create(bytes, new Shape(bytes.remaining()), DataType.UINT8);
        array.attach(owner);
        return array;
    }

    /**
     * Makes packed parameters known to the device for as long as their owner lives.
     *
     * @param owner the manager that the parameters are attached to
     * @param params UINT8 [bytes], on the CPU
     */
    public void hold(NDManager owner, NDArray params) {
        if (onGpu()) {
            HeldParams held = HeldParams.hold(params, place);
            owner.attachInternal(NDManager.nextUid(), held);
        }
    }

    /** Variants of the operators, in the library's numbering. */
    public enum Variant {
        /** Plain C++, the definition. */
        PORTABLE,
        /** AVX2 with FMA and F16C. */
        AVX2,
        /** AVX-512 F, BW, VL and DQ. */
        AVX512
    }

    /**
     * Sets the number of threads that operators use.
     *
     * @param threads 1 or more
     */
    public void setThreads(int threads) {
        configure(threads, -1);
    }

    /**
     * Selects a variant for the whole process; the best one is selected when the library is loaded.
     *
     * @param variant one that this processor can run
     */
    public void useVariant(Variant variant) {
        configure(-1, variant.ordinal());
    }

    /**
     * Returns the variant in use.
     *
     * @return the variant
     */
    public Variant currentVariant() {
        return Variant.values()[configure(-1, -1)[1]];
    }

    /**
     * Returns the name of the operators in use.
     *
     * @return cuda, or the variant
     */
    public String name() {
        return onGpu() ? "cuda" : currentVariant().name().toLowerCase(Locale.ROOT);
    }

    /**
     * Returns the best variant that this processor can run.
     *
     * @return the variant
     */
    public Variant bestVariant() {
        return Variant.values()[configure(-1, -1)[2]];
    }

    /**
     * Returns the number of threads that operators use.
     *
     * @return the number
     */
    public int threads() {
        return configure(-1, -1)[0];
    }

    private int[] configure(int threads, int variant) {
        try (NDManager scope = host.newSubManager()) {
            NDArray settings = scope.create(new int[] {threads, variant});
            return module.run(scope, "configure", settings).get(0).toIntArray();
        }
    }

    /**
     * Returns the bytes of a page and of an exact page of a layer.
     *
     * @param params UINT8 [bytes], packed layer parameters
     * @return the two sizes
     */
    public long[] layout(NDArray params) {
        try (NDManager scope = manager.newSubManager()) {
            return module.run(scope, "layout", params).get(0).toLongArray();
        }
    }

    /**
     * Copies rows within every pool.
     *
     * @param pools tensors whose first axis is counted in rows
     * @param source the rows to copy
     * @param target where they go, as many
     */
    public void copyRows(NDList pools, int[] source, int[] target) {
        try (NDManager scope = manager.newSubManager()) {
            NDArray from = scope.create(source).toType(DataType.INT64, false);
            NDArray to = scope.create(target).toType(DataType.INT64, false);
            module.run(scope, "copy_rows", pools, from, to);
        }
    }

    /**
     * Wraps raw bytes as a tensor on the CPU, without a copy.
     *
     * @param owner the manager that the tensor is attached to; the buffer stays referenced as long
     * @param bytes a direct buffer, position 0, little endian
     * @param type "F32", "F16" or "BF16"
     * @param shape the shape in elements
     * @return the tensor; a BF16 one is opaque to Java
     */
    public NDArray wrap(NDManager owner, ByteBuffer bytes, String type, Shape shape) {
        ByteBuffer data = bytes.slice().order(ByteOrder.nativeOrder());
        switch (type) {
            case "F32":
                return owner.create(data, shape, DataType.FLOAT32);
            case "F16":
                return owner.create(data, shape, DataType.FLOAT16);
            case "BF16":
                // BF16 can not cross DJL's JNI: the bytes do, and are reinterpreted inside
                // libtorch.
                long[] sizes = shape.getShape().clone();
                sizes[sizes.length - 1] *= 2;
                NDArray raw = owner.create(data, new Shape(sizes), DataType.INT8);
                return module.run(owner, "view_bfloat16", raw).get(0);
            default:
                throw new IllegalArgumentException("No tensor type " + type);
        }
    }

    /**
     * Converts a tensor.
     *
     * @param owner the manager that the result is attached to
     * @param x the tensor
     * @param type "F32", "F16" or "BF16"
     * @return a new tensor, or a view of x if it has the type
     */
    public NDArray convert(NDManager owner, NDArray x, String type) {
        return module.run(owner, "convert", x, (long) typeNumber(type)).get(0);
    }

    /**
     * Returns libtorch's number of a type.
     *
     * @param type "F32", "F16" or "BF16"
     * @return the number
     */
    public static int typeNumber(String type) {
        return "F32".equals(type) ? FLOAT32 : "F16".equals(type) ? FLOAT16 : BFLOAT16;
    }

    /**
     * Copies raw bytes to the device as a tensor.
     *
     * @param owner the manager that the tensor is attached to
     * @param bytes a direct buffer, position 0, little endian
     * @param from the type that the bytes have: "F32", "F16" or "BF16"
     * @param to the type that the tensor gets
     * @param shape the shape in elements
     * @return the tensor; a BF16 one is opaque to Java
     */
    public NDArray upload(NDManager owner, ByteBuffer bytes, String from, String to, Shape shape) {
        try (NDManager scope = host.newSubManager()) {
            NDArray wrapped = wrap(scope, bytes, from, shape);
            return module.run(owner, "move", wrapped, place, (long) typeNumber(to)).get(0);
        }
    }

    /**
     * Joins tensors along their first axis.
     *
     * @param owner the manager that the result is attached to
     * @param parts tensors of one type
     * @return the tensor
     */
    public NDArray join(NDManager owner, NDList parts) {
        return module.run(owner, "join", parts).get(0);
    }

    /**
     * Starts the random numbers of {@link #random}, which are libtorch's.
     *
     * @param seed the seed
     */
    public void seed(int seed) {
        JniUtils.setSeed(seed);
    }

    /**
     * Makes normally distributed numbers on the device.
     *
     * @param owner the manager that the result is attached to
     * @param shape its shape
     * @param scale their standard deviation
     * @param mean their mean
     * @param type "F32", "F16" or "BF16"
     * @return the tensor; a BF16 one is opaque to Java
     */
    public NDArray random(NDManager owner, Shape shape, double scale, double mean, String type) {
        return module.run(
                        owner,
                        "random",
                        shape.getShape(),
                        scale,
                        mean,
                        (long) typeNumber(type),
                        place)
                .get(0);
    }

    /** {@inheritDoc} */
    @Override
    public void close() {
        manager.close();
    }
}
