/**
 * The kernels, and how a program gets them: as PTX that the driver compiles on a GPU, as functions on a simulated one.
 * The code that launches them is the same.
 */
import { CudaKernel, CudaMemory, CudaModule, CudaParameter, CudaProgram, SimulatedRuntime } from "effect-cuda"
import type { CudaError, CudaGraph, CudaRuntime } from "effect-cuda"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { crc32 } from "node:zlib"
import * as Crc from "./Crc.ts"
import { countBytes } from "./Summary.ts"
import type { Summary } from "./Summary.ts"

const { input, pointer, u32, u64 } = CudaParameter

/** The parameters of the kernels in `kernels.cu`. */
export const parameters = {
  histogram: [pointer, input, u32],
  checksum: [pointer, input, u32, u64]
} as const

/** Next to its source, for the compiled demo in `dist-examples` as well. */
const image = new URL("../../examples/demo/kernels.ptx", import.meta.url)

/** A summary on the device. Chunks can be added in any order, on several streams at once. */
export interface DeviceSummary {
  /** Enqueues both kernels on the current stream, for a chunk with this many bytes of the file after it. */
  readonly add: (chunk: Chunk, bytesAfter: BytesAfter) => Effect.Effect<void, CudaError.CudaError>
  /** Downloads the summary, once all chunks are added. */
  readonly download: Effect.Effect<Summary, CudaError.CudaError>
}

type Chunk = CudaMemory.Slice<CudaMemory.DeviceBuffer>

/** A number, or what stands for one while a graph is recorded. */
type BytesAfter = number | bigint | CudaGraph.GraphScalar<"u64">

/** Loads the kernels, and creates a summary for a file of `byteLength` bytes. */
export const make = (
  byteLength: number
): Effect.Effect<DeviceSummary, CudaError.CudaError, CudaRuntime.CudaRuntime | Scope.Scope> =>
  Effect.gen(function*() {
    const module = yield* CudaModule.load(yield* CudaProgram.fromFile(image))
    const counts = yield* makeCounts(module)
    const checksum = yield* makeChecksum(module, byteLength)
    return {
      add: (chunk, bytesAfter) => Effect.andThen(counts.add(chunk), checksum.add(chunk, bytesAfter)),
      download: Effect.all({ counts: counts.download, checksum: checksum.download })
    }
  })

const makeCounts = Effect.fnUntraced(function*(module: CudaModule.CudaModule) {
  const histogram = yield* CudaKernel.get(module, "histogram", parameters.histogram)
  // A grid-stride loop over the words of a chunk: launches no more threads than run at once.
  const { block, minGrid } = yield* CudaKernel.bestBlock(histogram)
  const counts = yield* CudaMemory.allocate(256 * BigUint64Array.BYTES_PER_ELEMENT)
  yield* CudaMemory.fill(counts, 0)
  return {
    add: (chunk: Chunk) => {
      const grid = Math.min(Math.ceil(chunk.byteLength / (16 * block)), minGrid)
      return CudaKernel.launch(histogram, { grid, block }, [counts, chunk, chunk.byteLength])
    },
    download: Effect.suspend(() => {
      const values = new BigUint64Array(256)
      return Effect.as(CudaMemory.download(values, counts), values)
    })
  }
})

const makeChecksum = Effect.fnUntraced(function*(module: CudaModule.CudaModule, fileBytes: number) {
  const checksum = yield* CudaKernel.get(module, "checksum", parameters.checksum)
  const sum = yield* CudaMemory.allocate(Uint32Array.BYTES_PER_ELEMENT)
  yield* CudaMemory.fill32(sum, Crc.ofZeros(fileBytes))
  return {
    add: (chunk: Chunk, bytesAfter: BytesAfter) => {
      const { byteLength } = chunk
      const grid = Math.ceil(byteLength / (pieceBytes * checksumBlock))
      return CudaKernel.launch(checksum, { grid, block: checksumBlock }, [sum, chunk, byteLength, bytesAfter])
    },
    download: Effect.suspend(() => {
      const values = new Uint32Array(1)
      return Effect.map(CudaMemory.download(values, sum), () => values[0]!)
    })
  }
})

/** Bytes per thread of `checksum`, as in `kernels.cu`. */
const pieceBytes = 256
const checksumBlock = 256

/** The time of a launch: a fixed part, and a bandwidth in bytes per second. */
export interface Cost {
  readonly micros: number
  readonly bandwidth: number
}

/** As measured on an H200, from 8 to 64 MiB. */
export const h200: { readonly histogram: Cost; readonly checksum: Cost } = {
  histogram: { micros: 3.2, bandwidth: 4.5e12 },
  checksum: { micros: 5.7, bandwidth: 418e9 }
}

/** The kernels as functions, for simulated devices with this memory bandwidth in bytes per second, or with these costs. */
export const simulated = (
  costs: number | typeof h200
): Readonly<Record<string, SimulatedRuntime.SimulatedKernel>> => {
  const costOf = (own: "histogram" | "checksum") => ({ args }: SimulatedRuntime.SimulatedLaunch) => {
    const { bandwidth, micros } = typeof costs === "number" ? { micros: 0, bandwidth: costs } : costs[own]
    return Duration.seconds(micros / 1e6 + Number(args[2]) / bandwidth)
  }
  return {
    histogram: SimulatedRuntime.kernel({
      parameters: parameters.histogram,
      cost: costOf("histogram"),
      run: ({ args: [counts, bytes, byteLength] }) =>
        countBytes(counts.view(BigUint64Array), bytes.view(Uint8Array, byteLength))
    }),
    checksum: SimulatedRuntime.kernel({
      parameters: parameters.checksum,
      cost: costOf("checksum"),
      run: ({ args: [sum, bytes, byteLength, bytesAfter] }) => {
        const own = crc32(bytes.view(Uint8Array, byteLength)) ^ Crc.ofZeros(byteLength)
        sum.store("u32", 0, (sum.load("u32", 0) ^ Crc.followedBy(own, Number(bytesAfter))) >>> 0)
      }
    })
  }
}
