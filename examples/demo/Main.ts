/**
 * The demo's command: its arguments, the choice of runtime, and the output.
 */
import { AutoRuntime, CudaRuntime } from "effect-cuda"
import * as Console from "effect/Console"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Kernels from "./Kernels.ts"
import * as Pipeline from "./Pipeline.ts"
import * as Progress from "./Progress.ts"
import { describeRuntime, formatBytes, report } from "./Report.ts"
import { openFile } from "./Source.ts"
import type { Source } from "./Source.ts"
import * as Summary from "./Summary.ts"

const usage = "Usage: npm run demo -- [FILE]"

class WrongUsage extends Data.TaggedError("WrongUsage") {
  override readonly message = usage
}

const chunkBytes = 8 * 1024 * 1024
const slots = 4

/** A GPU slow enough to watch, for machines without one. */
const slowDevice = { hostBandwidth: 400e6, deviceBandwidth: 800e6 }

const runtime = AutoRuntime.layer({
  simulated: { devices: [slowDevice], kernels: Kernels.simulated(slowDevice.deviceBandwidth) }
})

/** Runs the demo with command-line arguments. Prints the reason before it fails. */
export const main = Effect.fnUntraced(
  function*(args: ReadonlyArray<string>) {
    const [path = process.execPath, ...more] = args
    if (more.length > 0) return yield* new WrongUsage()
    if (path === "--help" || path === "-h") return yield* Console.log(usage)
    const source = yield* openFile(path)
    yield* Effect.provide(demonstrate(source), runtime)
  },
  Effect.scoped,
  Effect.tapError((error) => Console.error(error.message)),
  Effect.tapDefect((defect) => Console.error(defect))
)

const demonstrate = Effect.fnUntraced(function*(source: Source) {
  const { byteLength, name } = source
  yield* Console.log(`runtime    ${describeRuntime(yield* CudaRuntime.CudaRuntime)}`)
  yield* Console.log(`file       ${name}`)
  yield* Console.log(`size       ${formatBytes(byteLength)}, in chunks of ${formatBytes(chunkBytes)}\n`)
  const pipelined = yield* withProgress("pipelined", source, Pipeline.pipelined)
  const serial = yield* withProgress("serial", source, Pipeline.serial)
  const expected = yield* withProgress("on the CPU", source, Summary.summarize)
  yield* Summary.compare(name, pipelined.summary, expected)
  yield* Summary.compare(name, serial.summary, expected)
  yield* Console.log(report({ byteLength, slots, pipelined, serial }, process.stdout.columns || 80))
})

const withProgress = <A, E, R>(
  label: string,
  source: Source,
  run: (source: Source, options: Pipeline.Options) => Effect.Effect<A, E, R>
) =>
  Effect.gen(function*() {
    const advance = yield* Progress.make(label, source.byteLength)
    return yield* run(source, { chunkBytes, slots, onChunk: (_, bytes) => advance(bytes.byteLength) })
  }).pipe(Effect.scoped)
