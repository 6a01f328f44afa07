/**
 * The cases of PyTorch's CUDA sanitizer (`test/test_cuda_sanitizer.py` in pytorch/pytorch), told anew: each has the name of its case there,
 * and the same verdict.
 *
 * Streams there are numbers that are in no order with each other; here, they are streams that do not block. A kernel launch there is told
 * the tensors that it reads and writes; here, `CudaMemory.enqueue` is.
 *
 * Without a meaning here:
 * - test_ensure_exists, test_ensure_does_not_exist: handles are made by the library, so none is unknown or made twice.
 * - test_subclass: there are no tensors.
 * - test_deleted_record without a deletion: an event is not made again while it is in use.
 */
import { assert, describe, it } from "@effect/vitest"
import * as CudaDevice from "effect-cuda/CudaDevice"
import type { CudaError } from "effect-cuda/CudaError"
import * as CudaEvent from "effect-cuda/CudaEvent"
import * as CudaKernel from "effect-cuda/CudaKernel"
import * as CudaMemory from "effect-cuda/CudaMemory"
import type { DeviceBuffer } from "effect-cuda/CudaMemory"
import * as CudaModule from "effect-cuda/CudaModule"
import * as CudaParameter from "effect-cuda/CudaParameter"
import type { CudaRuntime, KernelArguments } from "effect-cuda/CudaRuntime"
import * as CudaStream from "effect-cuda/CudaStream"
import * as SimulatedRuntime from "effect-cuda/SimulatedRuntime"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { failsWith } from "../support/assertions.ts"
import { program } from "../support/kernels.ts"
import { expectReports, raceOf, reportsOf } from "./support.ts"

type Stream = CudaStream.CudaStream
type Tensor = DeviceBuffer
type Program = Effect.Effect<unknown, CudaError, CudaRuntime | Scope.Scope>

const many = 10
const size = 64

const nothing = () => {}

interface Used {
  readonly reads?: ReadonlyArray<Tensor>
  readonly writes?: ReadonlyArray<Tensor>
}

const launch = (stream: Stream, { reads = [], writes = [] }: Used = {}) =>
  CudaMemory.enqueue({ stream, reads, writes, simulate: nothing }, nothing)

const tensors = (count: number) => Effect.replicateEffect(CudaMemory.allocate(size), count)

/** As many streams as the longest case uses, and two tensors. */
const make = Effect.gen(function*() {
  const first = yield* Effect.all([
    CudaStream.make(),
    CudaStream.make(),
    CudaStream.make(),
    CudaStream.make(),
    CudaStream.make()
  ])
  const s = [...first, ...yield* Effect.replicateEffect(CudaStream.make(), many + 1 - first.length)] as const
  return { s, a: yield* CudaMemory.allocate(size), b: yield* CudaMemory.allocate(size) }
})

type Made = Effect.Success<typeof make>

const record = CudaStream.recordEvent
const wait = CudaStream.waitEvent

const enqueue = "CudaMemory.enqueue"
const writeAfterRead = raceOf(enqueue, "reads", enqueue, "writes")
const writeAfterWrite = raceOf(enqueue, "writes", enqueue, "writes")
const readAfterWrite = raceOf(enqueue, "writes", enqueue, "reads")

type Case = readonly [verdict: ReadonlyArray<string>, program: (made: Made) => Program]

const handlerCases: Record<string, Case> = {
  test_empty_kernel_launch: [[], ({ s }) => launch(s[0])],
  test_simple_passing: [[], ({ a, s }) => Effect.andThen(launch(s[1], { reads: [a] }), launch(s[2], { reads: [a] }))],
  test_simple_error: [
    [writeAfterRead],
    ({ a, s }) => Effect.andThen(launch(s[1], { reads: [a] }), launch(s[2], { writes: [a] }))
  ],
  test_simple_sync: [[], ({ a, s }) =>
    Effect.gen(function*() {
      yield* launch(s[1], { reads: [a] })
      yield* wait(s[2], yield* record(s[1]))
      yield* launch(s[2], { writes: [a] })
    })],
  test_reads_check_last_write: [[readAfterWrite], ({ a, s }) =>
    Effect.gen(function*() {
      yield* launch(s[1], { writes: [a] })
      yield* wait(s[2], yield* record(s[1]))
      yield* launch(s[2], { reads: [a] })
      yield* launch(s[3], { reads: [a] })
    })],
  test_branch_sync: [[writeAfterRead], ({ a, s }) =>
    Effect.gen(function*() {
      yield* launch(s[1], { writes: [a] })
      const written = yield* record(s[1])
      yield* wait(s[2], written)
      yield* wait(s[3], written)
      yield* launch(s[2], { reads: [a] })
      yield* launch(s[3], { reads: [a] })
      yield* launch(s[2], { writes: [a] })
    })],
  test_chain_sync: [[], ({ a, s }) =>
    Effect.gen(function*() {
      yield* launch(s[0], { reads: [a] })
      for (let index = 0; index < many; index++) yield* wait(s[index + 1]!, yield* record(s[index]!))
      yield* launch(s[many]!, { writes: [a] })
    })],
  test_expired_record: [[writeAfterRead], ({ a, s }) =>
    Effect.gen(function*() {
      yield* launch(s[1], { reads: [a] })
      const early = yield* record(s[1])
      yield* launch(s[1], { reads: [a] })
      yield* wait(s[2], early)
      yield* launch(s[2], { writes: [a] })
    })],
  test_all_reads_checked_failing: [[writeAfterRead], ({ a, s: [writer, ...readers] }) =>
    Effect.gen(function*() {
      const events = yield* Effect.forEach(
        readers,
        (reader) => Effect.andThen(launch(reader, { reads: [a] }), record(reader))
      )
      yield* Effect.forEach(events.slice(0, -1), (event) => wait(writer, event))
      yield* launch(writer, { writes: [a] })
    })],
  test_all_reads_checked_passing: [[], ({ a, s: [writer, ...readers] }) =>
    Effect.gen(function*() {
      const events = yield* Effect.forEach(
        readers,
        (reader) => Effect.andThen(launch(reader, { reads: [a] }), record(reader))
      )
      yield* Effect.forEach(events, (event) => wait(writer, event))
      yield* launch(writer, { writes: [a] })
    })],
  test_multiple_errors: [Array<string>(many).fill(writeAfterWrite), ({ s }) =>
    Effect.gen(function*() {
      const writes = yield* tensors(many)
      yield* launch(s[0], { writes })
      yield* launch(s[1], { writes })
    })],
  test_correct_state_merging: [[], ({ a, b, s }) =>
    Effect.gen(function*() {
      yield* launch(s[1], { writes: [a] })
      yield* launch(s[2], { writes: [b] })
      const [first, second] = [yield* record(s[1]), yield* record(s[2])]
      yield* launch(s[1], { writes: [a] })
      yield* launch(s[2], { writes: [b] })
      yield* wait(s[2], first)
      yield* wait(s[1], second)
      yield* wait(s[1], yield* record(s[2]))
      yield* launch(s[1], { writes: [a, b] })
    })],
  // That the record is lost is a report of its own here.
  test_record_override: [["lostRecord", writeAfterRead], ({ a, b, s }) =>
    Effect.gen(function*() {
      yield* launch(s[1], { reads: [a] })
      yield* launch(s[2], { reads: [b] })
      const event = yield* record(s[1])
      yield* CudaEvent.record(event, s[2])
      yield* wait(s[3], event)
      yield* launch(s[3], { writes: [a] })
    })],
  test_multiple_wait: [[], ({ a, s }) =>
    Effect.gen(function*() {
      yield* launch(s[1], { writes: [a] })
      const written = yield* record(s[1])
      yield* wait(s[2], written)
      yield* wait(s[3], written)
      yield* launch(s[2], { reads: [a] })
      yield* launch(s[3], { reads: [a] })
    })],
  test_device_synchronize: [[], ({ s: [last, ...others] }) =>
    Effect.gen(function*() {
      const writes = yield* tensors(others.length)
      for (const [index, stream] of others.entries()) yield* launch(stream, { writes: [writes[index]!] })
      yield* CudaDevice.synchronize(0)
      yield* launch(last, { writes })
    })],
  test_device_synchronization_expired: [[writeAfterWrite], ({ a, s }) =>
    Effect.gen(function*() {
      yield* launch(s[1], { writes: [a] })
      yield* CudaDevice.synchronize(0)
      yield* launch(s[1], { writes: [a] })
      yield* launch(s[2], { writes: [a] })
    })],
  test_new_stream_is_synchronized: [[], ({ a, s }) =>
    Effect.gen(function*() {
      yield* launch(s[1], { writes: [a] })
      yield* CudaDevice.synchronize(0)
      yield* launch(yield* CudaStream.make(), { writes: [a] })
    })],
  test_stream_synchronize: [[readAfterWrite], ({ a, b, s }) =>
    Effect.gen(function*() {
      yield* launch(s[0], { writes: [a] })
      yield* launch(s[1], { writes: [b] })
      yield* CudaStream.synchronize(s[0])
      yield* launch(s[2], { reads: [a] })
      yield* launch(s[3], { reads: [a] })
      yield* launch(s[4], { reads: [b] })
    })],
  test_event_synchronize: [[writeAfterWrite], ({ a, b, s }) =>
    Effect.gen(function*() {
      yield* launch(s[1], { writes: [a] })
      const written = yield* record(s[1])
      yield* launch(s[1], { writes: [b] })
      yield* CudaEvent.synchronize(written)
      yield* launch(s[2], { writes: [a] })
      yield* launch(s[2], { writes: [b] })
    })]
}

describe("TestEventHandler", () => {
  it.live.each(Object.keys(handlerCases))("%s", (name) => {
    const [verdict, program] = handlerCases[name]!
    return expectReports(Effect.flatMap(make, program), verdict)
  })

  it.live("test_deleted_record: the wait is refused, and orders nothing", () =>
    expectReports(
      Effect.gen(function*() {
        const { a, s } = yield* make
        yield* launch(s[1], { reads: [a] })
        const deleted = yield* Effect.scoped(record(s[1]))
        yield* failsWith(wait(s[2], deleted), "ResourceReleased")
        yield* launch(s[2], { writes: [a] })
      }),
      [writeAfterRead]
    ))

  it.live("test_deleted_record: another event made after it has no record of its own", () =>
    expectReports(
      Effect.gen(function*() {
        const { a, s } = yield* make
        yield* launch(s[1], { reads: [a] })
        yield* Effect.scoped(record(s[1]))
        yield* wait(s[2], yield* CudaEvent.make())
        yield* launch(s[2], { writes: [a] })
      }),
      ["neverRecorded", writeAfterRead]
    ))
})

const { array, input, output, pointer } = CudaParameter

const four = Effect.all([
  CudaMemory.allocate(size),
  CudaMemory.allocate(size),
  CudaMemory.allocate(size),
  CudaMemory.allocate(size)
])

/** What a launch with these parameters and arguments uses: what races with a write of everything on another stream. */
const usesOf = <const Parameters extends ReadonlyArray<CudaParameter.ParameterKind>>(
  parameters: Parameters,
  argumentsOf: (tensors: Effect.Success<typeof four>) => KernelArguments<Parameters>
) =>
  Effect.map(
    reportsOf(
      Effect.gen(function*() {
        const [one, other] = [yield* CudaStream.make(), yield* CudaStream.make()]
        const all = yield* four
        const kernel = yield* CudaKernel.get(yield* CudaModule.load(yield* program), "operator", parameters)
        yield* launch(one, { writes: all })
        yield* CudaKernel.launch(kernel, { grid: 1, block: 1 }, argumentsOf(all), other)
      }),
      {},
      SimulatedRuntime.layer({ kernels: { operator: SimulatedRuntime.kernel({ parameters, cost: 1, run: nothing }) } })
    ),
    (reports) =>
      reports.map((report) => report._tag === "Race" ? [report.second.kind, report.second.argument] : [report])
  )

describe("TestArgumentHandler", () => {
  it.live("test_add", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* usesOf([input, input, output], ([a, b, c]) => [a, b, c]), [
        ["reads", "arguments[0]"],
        ["reads", "arguments[1]"],
        ["writes", "arguments[2]"]
      ])
    }))

  it.live("test_cat", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* usesOf([array(input, 3), output], ([a, b, c, d]) => [[a, b, c], d]), [
        ["reads", "arguments[0][0]"],
        ["reads", "arguments[0][1]"],
        ["reads", "arguments[0][2]"],
        ["writes", "arguments[1]"]
      ])
    }))

  it.live("test_split: slices use nothing", () =>
    expectReports(
      Effect.gen(function*() {
        const { a, s } = yield* make
        yield* launch(s[0], { writes: [a] })
        assert.lengthOf([0, 16, 32].map((offset) => CudaMemory.slice(a, offset, 16)), 3)
      }),
      []
    ))

  it.live("test_inplace", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* usesOf([pointer], ([a]) => [a]), [["reads and writes", "arguments[0]"]])
    }))

  it.live("test_out", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* usesOf([input, output], ([a, b]) => [a, b]), [
        ["reads", "arguments[0]"],
        ["writes", "arguments[1]"]
      ])
    }))

  it.live("test_nonzero", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* usesOf([input, array(output, 3)], ([a, b, c, d]) => [a, [b, c, d]]), [
        ["reads", "arguments[0]"],
        ["writes", "arguments[1][0]"],
        ["writes", "arguments[1][1]"],
        ["writes", "arguments[1][2]"]
      ])
    }))

  it.live("test_tensor_names: each argument with the same tensor is named", () =>
    Effect.gen(function*() {
      const uses = yield* usesOf([input, input, input, output], ([m, vector, , out]) => [m, vector, vector, out])
      assert.deepStrictEqual(uses, [
        ["reads", "arguments[0]"],
        ["reads", "arguments[1]"],
        ["reads", "arguments[2]"],
        ["writes", "arguments[3]"]
      ])
    }))
})

describe("TestMessages", () => {
  it.live("test_error_message", () =>
    Effect.gen(function*() {
      const [report] = yield* reportsOf(Effect.gen(function*() {
        const { a, s } = yield* make
        yield* Effect.withSpan(launch(s[0], { reads: [a] }), "trace b")
        yield* Effect.withSpan(launch(s[1], { writes: [a] }), "trace a")
      }))
      assert.match(
        report?.message ?? "",
        new RegExp(
          "^Race on bytes 0 to 63 of buffer .*:\n" +
            "  1\\. CudaMemory\\.enqueue reads reads\\[0\\] on stream \\d+ of device 0, in trace b .*\n" +
            "  2\\. CudaMemory\\.enqueue writes writes\\[0\\] on stream \\d+ of device 0, in trace a "
        )
      )
    }))
})
