/**
 * The child process of the tests of shared memory. It does what the first message asks for, and reports what it found.
 */
import { CudaInterprocess, CudaMemory, CudaMemoryPool, CudaStream, NativeRuntime } from "effect-cuda"
import type { MemoryToken, PoolToken } from "effect-cuda/CudaInterprocess"
import * as Effect from "effect/Effect"

interface Order {
  readonly role: "fill" | "hold" | "lend" | "share"
  readonly memory?: MemoryToken
  readonly pool?: PoolToken
}

/** The number of the descriptor that the parent passes. */
const descriptor = 4

const send = (message: unknown) => Effect.sync(() => void process.send?.(message))

/** Keeps the GPU busy for some seconds. */
const longWork = (stream: CudaStream.CudaStream) =>
  Effect.gen(function*() {
    const much = yield* CudaMemory.allocate(2 ** 32)
    yield* Effect.forEach(Array.from({ length: 3000 }), () => CudaMemory.fill(much, 1, stream), { discard: true })
  })

const opened = ({ memory, pool }: Order) =>
  Effect.gen(function*() {
    const options = pool === undefined ? {} : { pool: yield* CudaInterprocess.openPool(pool, descriptor) }
    return yield* CudaInterprocess.open(memory!, options)
  })

const roles = {
  /** Reports the first byte of the memory, and fills it with 9. */
  fill: (order: Order) =>
    Effect.gen(function*() {
      const first = new Uint8Array(1)
      yield* Effect.scoped(Effect.gen(function*() {
        const [buffer, stream] = [yield* opened(order), yield* CudaStream.make()]
        yield* CudaMemory.download(first, CudaMemory.slice(buffer, 0, 1), stream)
        yield* CudaMemory.fill(buffer, 9, stream)
      }))
      yield* send({ first: first[0] })
    }),
  /** Works on the memory for seconds, and is killed meanwhile. */
  hold: (order: Order) =>
    Effect.gen(function*() {
      const [buffer, stream] = [yield* opened(order), yield* CudaStream.make()]
      yield* longWork(stream)
      yield* CudaMemory.fill(buffer, 9, stream)
      yield* send("working")
      return yield* Effect.never
    }),
  /** Lends memory that is ready in some seconds, and is killed meanwhile. */
  lend: () =>
    Effect.gen(function*() {
      const [buffer, stream] = [yield* CudaInterprocess.allocate(64), yield* CudaStream.make()]
      yield* longWork(stream)
      return yield* CudaInterprocess.lend(buffer, (token) => Effect.andThen(send(token), Effect.never), { stream })
    }),
  /** Shares memory that is full of 5, in a pool and outside of pools, until it is told to end. */
  share: () =>
    Effect.gen(function*() {
      const stream = yield* CudaStream.make()
      const pool = yield* CudaMemoryPool.make({ shareable: true })
      const [pooled, single] = [yield* CudaMemory.allocate(64, { pool }), yield* CudaInterprocess.allocate(64)]
      for (const buffer of [pooled, single]) yield* CudaMemory.fill(buffer, 5, stream)
      yield* CudaStream.synchronize(stream)
      const { descriptor, token } = yield* CudaInterprocess.sharePool(pool)
      yield* send({
        descriptor,
        pool: token,
        pooled: yield* CudaInterprocess.share(pooled),
        single: yield* CudaInterprocess.share(single)
      })
      yield* nextMessage
    })
}

const nextMessage = Effect.callback<Order>((resume) => {
  process.once("message", (message: Order) => resume(Effect.succeed(message)))
})

const program = nextMessage.pipe(
  Effect.flatMap((order) => roles[order.role](order)),
  Effect.scoped,
  Effect.provide(NativeRuntime.layer())
)

await Effect.runPromise(program)
process.disconnect()
