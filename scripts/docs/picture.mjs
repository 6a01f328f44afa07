// Draws the picture of the README: the demo's pipeline on a simulated GPU, in virtual time. Requires the build and the built examples.
// `npm run pictures` writes docs/pictures/pipeline.svg.
import { CudaTiming, SimulatedRuntime } from "effect-cuda"
import * as Effect from "effect/Effect"
import * as TestClock from "effect/testing/TestClock"
import { writeFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import * as Kernels from "../../dist-examples/demo/Kernels.js"
import { pipelined } from "../../dist-examples/demo/Pipeline.js"

const chunkBytes = 1 << 20
const source = {
  name: "ten chunks",
  byteLength: 10 * chunkBytes,
  read: (into) => Effect.sync(() => void into.fill(7))
}
const bandwidth = 400e6
const machine = SimulatedRuntime.layer({
  devices: [{ hostBandwidth: bandwidth, deviceBandwidth: 2 * bandwidth }],
  kernels: Kernels.simulated(2 * bandwidth)
})

const turn = Effect.promise(() => new Promise((resolve) => setImmediate(resolve)))
const passing = Effect.forever(Effect.andThen(turn, TestClock.adjust("20 micros")))

const { timeline } = await pipelined(source, { chunkBytes, slots: 4 }).pipe(
  Effect.provide(machine),
  Effect.raceFirst(passing),
  Effect.provide(TestClock.layer()),
  Effect.scoped,
  Effect.runPromise
)
const picture = CudaTiming.toSvg(timeline, {
  title: "Ten chunks: upload, work and download on three streams",
  width: 900
})
writeFileSync(fileURLToPath(new URL("../../docs/pictures/pipeline.svg", import.meta.url)), picture)
