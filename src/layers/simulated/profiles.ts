/**
 * Devices as measured. Every number is from one machine with two NVIDIA H200 (driver 580.159, CUDA 13.0, PCIe 5.0 × 16), from C, as GPU
 * time between events around work that was enqueued behind a kernel. Bandwidths are slopes over sizes, so that latencies are not in them.
 */
import type { SimulatedDeviceOptions } from "../SimulatedRuntime.ts"

export const h200: SimulatedDeviceOptions = {
  name: "NVIDIA H200",
  memory: 150_109_880_320,
  computeCapability: { major: 9, minor: 0 },
  copyEngines: 3,
  priorityRange: { least: 0, greatest: -5 },
  // 1 to 16 MiB of pinned memory. Both ways at once: 50e9 each.
  hostBandwidth: 54.3e9,
  downloadBandwidth: 55.2e9,
  // 256 MiB to 1 GiB. Up to 32 MiB, the L2 cache makes copies up to 1.4 times as fast.
  deviceBandwidth: 2.13e12,
  fillBandwidth: 4.66e12,
  // NVLink, 256 MiB to 1 GiB. Both ways at once: 392e9 each.
  peerBandwidth: 397e9,
  // Copies of 8 and 16 MiB alone between two events. Small copies in a row take 2.5 to 2.9 µs each on a GPU, peer copies 2.3.
  latencies: {
    upload: "6400 nanos",
    download: "6600 nanos",
    copy: "1900 nanos",
    peerCopy: "8 micros",
    fill: "1900 nanos",
    // Empty kernels in a row, 100 to 400 in a stream, 100 to 1000 in a graph.
    kernel: "1400 nanos",
    graphKernel: "680 nanos",
    timedRecord: "2900 nanos",
    // Kernels on two streams in turn; kernels and copies on two streams in turn.
    wait: "300 nanos",
    waitAcrossEngines: "4100 nanos"
  },
  attributes: {
    clockRate: 1_980_000,
    multiprocessorCount: 132,
    memoryClockRate: 3_201_000,
    globalMemoryBusWidth: 6016,
    l2CacheSize: 62_914_560,
    maxSharedMemoryPerMultiprocessor: 233_472,
    maxSharedMemoryPerBlockOptin: 232_448,
    gpuDirectRdmaSupported: 1,
    multicastSupported: 1
  }
}
