/** Fork and join, with pictures: two branches side by side, their result in a third buffer, and what ran when as an SVG. */
import { CudaBranch, CudaMemory, CudaStream, CudaTaskGraph, CudaTiming } from "effect-cuda"
import * as Effect from "effect/Effect"

const byteLength = 1 << 24

const work = Effect.gen(function*() {
  const left = yield* CudaMemory.allocate(byteLength)
  const right = yield* CudaMemory.allocate(byteLength)
  const both = yield* CudaMemory.allocate(2 * byteLength)

  // Both branches start after the work of the current stream, which goes on after both.
  yield* CudaBranch.all([
    CudaMemory.fill(left, 1).pipe(CudaTiming.region("fill left")),
    CudaMemory.fill(right, 2).pipe(CudaTiming.region("fill right"))
  ])
  yield* CudaBranch.all([
    CudaMemory.copy(CudaMemory.slice(both, 0, byteLength), left).pipe(CudaTiming.region("copy left")),
    CudaMemory.copy(CudaMemory.slice(both, byteLength), right).pipe(CudaTiming.region("copy right"))
  ])
  const bytes = new Uint8Array(2 * byteLength)
  yield* CudaMemory.download(bytes, both).pipe(CudaTiming.region("download"))
  return bytes
}).pipe(Effect.scoped, CudaStream.withPooledStream())

/** The same as named tasks, which can be drawn before they run. */
export const tasks = (left: CudaMemory.DeviceBuffer, right: CudaMemory.DeviceBuffer) =>
  CudaTaskGraph.empty.pipe(
    CudaTaskGraph.add("left", CudaMemory.fill(left, 1)),
    CudaTaskGraph.add("right", CudaMemory.fill(right, 2)),
    CudaTaskGraph.add("both", ["left", "right"], () => CudaMemory.copy(left, right))
  )

export const program = Effect.gen(function*() {
  const [timeline, bytes] = yield* CudaTiming.timeline(work)
  const [left, right] = [yield* CudaMemory.allocate(64), yield* CudaMemory.allocate(64)]
  return {
    bytes,
    regions: timeline.regions,
    diagram: CudaTaskGraph.toMermaid(tasks(left, right)),
    picture: CudaTiming.toSvg(timeline, { title: "Fork and join" })
  }
}).pipe(Effect.scoped)
