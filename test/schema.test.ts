/**
 * `CudaError` across a wire: every reason and every field survive JSON, and an RPC.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaError, CudaMemory, SimulatedRuntime } from "effect-cuda"
import * as CudaSchema from "effect-cuda/CudaSchema"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Rpc from "effect/rpc/Rpc"
import * as RpcGroup from "effect/rpc/RpcGroup"
import * as RpcTest from "effect/rpc/RpcTest"
import * as Schema from "effect/Schema"
import { statuses } from "../src/cuda/status.ts"
import type { CudaErrorFields, CudaErrorReason } from "../src/CudaError.ts"

const codec = Schema.toCodecJson(CudaSchema.CudaError)
const encode = Schema.encodeEffect(codec)
const decode = Schema.decodeUnknownEffect(codec)

/** What arrives, after real JSON. */
const sent = (fields: CudaErrorFields) =>
  Effect.gen(function*() {
    const error = new CudaError.CudaError(fields)
    const arrived = yield* decode(JSON.parse(JSON.stringify(yield* encode(error))))
    assert.instanceOf(arrived, CudaError.CudaError)
    assert.strictEqual(arrived.message, error.message)
    assert.strictEqual(arrived.isSticky, error.isSticky)
    assert.strictEqual(arrived.isRetryable, error.isRetryable)
    return arrived
  })

const searched = [{ path: "/lib/libx.so", problem: "no such file" }]

const reasons: ReadonlyArray<CudaErrorReason> = [
  { _tag: "InvalidArgument", argument: "count", value: "-1", expected: "at least 0" },
  { _tag: "ResourceReleased", resource: "stream 3" },
  { _tag: "ForeignResource", resource: "stream 3" },
  { _tag: "DeviceMismatch", resources: ["stream 3", "event 4"], deviceIndices: [0, 1] },
  { _tag: "TimingDisabled", resource: "event 1" },
  { _tag: "NotRecorded", resource: "event 1" },
  { _tag: "NotFinished", resource: "event 1" },
  { _tag: "LibraryNotFound", isNamed: false, searched },
  { _tag: "KoffiNotLoaded", problem: "missing" },
  { _tag: "DriverTooOld", found: 11080, required: 12000 },
  { _tag: "FunctionMissing", functionName: "cuX" },
  { _tag: "FunctionMissing", functionName: "xCreate", library: "x", since: "2.1" },
  { _tag: "CannotRecord", because: "it waits", frame: undefined },
  { _tag: "GraphRefused", resource: "graph", because: "no", nodeIndex: 4 },
  { _tag: "NeverFinishes", resource: "stream 1", because: "nothing runs" },
  { _tag: "RaceDetected", accesses: ["one", "other"], fix: undefined, report: "a race" },
  {
    _tag: "CompilationFailed",
    program: "p",
    diagnostics: [{
      severity: "error",
      file: "p",
      line: 1,
      column: undefined,
      message: "no",
      code: undefined,
      text: "x"
    }],
    log: "log"
  },
  { _tag: "InvalidCompileOption", options: ["-x"], log: "unknown" },
  {
    _tag: "CompilerFailed",
    code: 3,
    name: "N",
    description: "d",
    advice: "",
    isSticky: false,
    isRetryable: true,
    log: "log"
  },
  { _tag: "CompilerNotFound", searched },
  { _tag: "LibraryUnavailable", library: "NVML", searched, advice: "install it" },
  {
    _tag: "LibraryFailed",
    library: undefined,
    code: 3,
    name: undefined,
    description: "",
    advice: "",
    isRetryable: true
  },
  { _tag: "TimedOut", resource: "the other ranks", milliseconds: 300, advice: "Look for a rank that failed." },
  { _tag: "FileUnreadable", path: "/x", code: "ENOENT", problem: "no such file" }
]

describe("CudaSchema.CudaError", () => {
  it.effect.each(reasons)("keeps $_tag", (reason) =>
    Effect.gen(function*() {
      assert.deepStrictEqual((yield* sent({ operation: "Test.call", reason })).reason, reason)
    }))

  it.effect("keeps every status of the driver", () =>
    Effect.gen(function*() {
      for (const { code } of Object.values(statuses)) {
        const reason = CudaError.reasonFromStatus(code)
        assert.strictEqual((yield* sent({ operation: "Test.call", call: "cuX", reason })).reason, reason)
      }
    }))

  it.effect("makes a status that only the sender knows an UnknownStatus", () =>
    Effect.gen(function*() {
      const sender = { ...CudaError.unknownStatus(4242, "CUDA_ERROR_OF_TOMORROW", "new"), _tag: "OfTomorrow" }
      const arrived = yield* decode({ operation: "Test.call", reason: sender })
      assert.deepStrictEqual(arrived.reason, CudaError.unknownStatus(4242, "CUDA_ERROR_OF_TOMORROW", "new"))
    }))

  it.effect("keeps the other fields, and the cause", () =>
    Effect.gen(function*() {
      const reason = CudaError.reasonFromStatus(700)
      const fields = {
        operation: "CudaKernel.launch",
        reason,
        call: "cuLaunchKernel",
        subject: "kernel add",
        deviceIndex: 1,
        log: "log",
        memory: { requested: 3, free: 2, total: 9 },
        origin: { operation: "CudaMemory.copy", deviceIndex: 0, status: statuses.IllegalAddress, at: 1000 },
        detail: "kernel add wrote beyond its buffer"
      }
      const arrived = yield* sent({ ...fields, cause: new RangeError("index 9") })
      for (const [name, value] of Object.entries(fields)) {
        assert.deepStrictEqual(arrived[name as keyof typeof fields], value, name)
      }
      const { cause } = arrived
      assert.instanceOf(cause, Error)
      assert.deepStrictEqual([cause.name, cause.message], ["RangeError", "index 9"])
    }))

  it.effect("refuses what is no failure", () =>
    Effect.gen(function*() {
      for (const wrong of [null, {}, { operation: "x" }, { operation: "x", reason: { _tag: "InvalidArgument" } }]) {
        assert.isTrue((yield* Effect.exit(decode(wrong)))._tag === "Failure")
      }
    }))

  it.effect("is the error of an RPC, handled by its reason", () =>
    Effect.gen(function*() {
      const group = RpcGroup.make(
        Rpc.make("allocate", { payload: { bytes: Schema.Number }, error: CudaSchema.CudaError })
      )
      const handlers = group.toLayer({
        allocate: ({ bytes }) => Effect.asVoid(Effect.scoped(CudaMemory.allocate(bytes)))
      })
      const allocated = Effect.gen(function*() {
        const client = yield* RpcTest.makeClient(group)
        yield* client.allocate({ bytes: 2 ** 50 })
        return "allocated"
      })
      const handled = allocated.pipe(
        Effect.catchReason("CudaError", "OutOfMemory", (_, error) =>
          Effect.succeed(`${error.memory?.requested} requested`)),
        Effect.provide(Layer.provideMerge(handlers, SimulatedRuntime.layer())),
        Effect.scoped
      )
      assert.strictEqual(yield* handled, `${2 ** 50} requested`)
    }))
})
