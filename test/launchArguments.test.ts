/**
 * Launches whose configuration and arguments run code while they are read: a launch never gets the sizes or arguments of another one, or
 * memory that was released meanwhile. And sizes that would be valid only after truncation to fewer bits or dimensions.
 */
import { assert, describe, it } from "@effect/vitest"
import {
  CudaKernel,
  CudaMemory,
  CudaModule,
  CudaParameter,
  CudaProgram,
  CudaStream,
  SimulatedRuntime
} from "effect-cuda"
import type { CudaError, CudaRuntime } from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { failsWith, refuses } from "./support/assertions.ts"
import { giveAway } from "./support/giveAway.ts"
import { assertReleased, openStub, stubLayer } from "./support/stubDriver.ts"

const stub = openStub()

const { output, struct, u32 } = CudaParameter
const parameters = [output, struct({ left: u32, right: u32 }), u32] as const

const program = CudaProgram.fromBytes(
  `.version 7.0
.target sm_70
.address_size 64
.visible .entry pair(.param .b64 to, .param .align 4 .b8 values[8], .param .b32 last) { ret; }
.visible .entry other(.param .b64 to, .param .align 4 .b8 values[8], .param .b32 last) { ret; }
`,
  { name: "pairs.ptx" }
)

/** A launch as the device saw it. */
interface Launch {
  readonly grid: number
  readonly block: number
  readonly to: number
  readonly values: ReadonlyArray<number>
}

/** The launches on the simulated device. */
const simulatedLaunches: Array<Launch> = []

const noting = SimulatedRuntime.kernel({
  parameters,
  cost: 0,
  run: ({ args: [to, { left, right }, last], block, grid }) => {
    simulatedLaunches.push({ grid: grid.x, block: block.x, to: to.address, values: [left, right, last] })
  }
})

const simulated = Layer.suspend(() => {
  simulatedLaunches.length = 0
  return SimulatedRuntime.layer({ devices: 1, kernels: { pair: noting, other: noting } })
})
const native = Layer.suspend(() => {
  stub.reset()
  return stubLayer(stub)
})

const number = (hex: string | number | undefined): number => Buffer.from(String(hex), "hex").readUInt32LE(0)

/** The launches that the stub saw: sizes, and the bytes of each argument. */
const nativeLaunches = (): ReadonlyArray<Launch> =>
  stub.calls("cuLaunchKernelEx").map(({ args }) => {
    const [to, values, last] = args.slice(-3).map(String)
    return {
      grid: Number(args[1]),
      block: Number(args[4]),
      to: Number(Buffer.from(to!, "hex").readBigUInt64LE(0)),
      values: [number(values!.slice(0, 8)), number(values!.slice(8)), number(last)]
    }
  })

type Kernel = CudaKernel.CudaKernel<typeof parameters>
type Arguments = CudaParameter.KernelArguments<typeof parameters>

interface Given {
  readonly pair: Kernel
  readonly other: Kernel
  readonly to: CudaMemory.DeviceBuffer
  readonly stream: CudaStream.CudaStream
  /** Releases `to`, and the stream. */
  readonly release: () => void
  readonly launches: Effect.Effect<ReadonlyArray<Launch>>
}

describe.each([["the driver", native], ["a simulated device", simulated]] as const)("on %s", (name, runtime) => {
  const withGiven = <A, E>(body: (given: Given) => Effect.Effect<A, E, CudaRuntime.CudaRuntime | Scope.Scope>) =>
    Effect.gen(function*() {
      const module = yield* CudaModule.load(yield* program)
      const [pair, other] = [
        yield* CudaKernel.get(module, "pair", parameters),
        yield* CudaKernel.get(module, "other", parameters)
      ]
      const scope = yield* Scope.make()
      yield* Effect.addFinalizer(() => Scope.close(scope, Exit.void))
      const stream = yield* Scope.provide(CudaStream.make(), scope)
      const to = yield* Scope.provide(CudaMemory.allocate(4096), scope)
      const release = () => Effect.runSync(Scope.close(scope, Exit.void))
      const launches = name === "the driver"
        ? Effect.sync(nativeLaunches)
        : Effect.sync(() => [...simulatedLaunches])
      return yield* body({ pair, other, to, stream, release, launches })
    }).pipe(
      Effect.scoped,
      Effect.provide(runtime),
      Effect.tap(() => name === "the driver" ? Effect.sync(() => assertReleased(stub)) : Effect.void)
    )

  /** Where code can run while a launch is read. */
  const places: ReadonlyArray<
    readonly [string, (act: () => void, given: Given) => Effect.Effect<void, CudaError.CudaError>]
  > = [
    [
      "a field of the configuration",
      (act, { pair, stream, to }) => {
        const config = {
          get grid() {
            act()
            return 2
          },
          block: 32
        }
        return CudaKernel.launch(pair, config, [to, { left: 1, right: 2 }, 3], stream)
      }
    ],
    [
      "a dimension of the grid",
      (act, { pair, stream, to }) => {
        const grid: [number] = [2]
        Object.defineProperty(grid, 0, {
          get: () => {
            act()
            return 2
          }
        })
        return CudaKernel.launch(pair, { grid, block: 32 }, [to, { left: 1, right: 2 }, 3], stream)
      }
    ],
    [
      "a field of a struct",
      (act, { pair, stream, to }) => {
        const values = {
          left: 1,
          get right() {
            act()
            return 2
          }
        }
        return CudaKernel.launch(pair, { grid: 2, block: 32 }, [to, values, 3], stream)
      }
    ],
    [
      "an item of the arguments",
      (act, { pair, stream, to }) => {
        const args: [typeof to, { left: number; right: number }, number] = [to, { left: 1, right: 2 }, 3]
        Object.defineProperty(args, 2, {
          get: () => {
            act()
            return 3
          }
        })
        return CudaKernel.launch(pair, { grid: 2, block: 32 }, args, stream)
      }
    ],
    [
      "the offset of a slice",
      (act, { pair, stream, to }) => {
        const slice = {
          buffer: to,
          get offset() {
            act()
            return 0
          },
          byteLength: 64
        }
        return CudaKernel.launch(pair, { grid: 2, block: 32 }, [slice, { left: 1, right: 2 }, 3], stream)
      }
    ]
  ]

  const outer = ({ to }: Given): Launch => ({ grid: 2, block: 32, to: to.address, values: [1, 2, 3] })
  const inner = ({ to }: Given): Launch => ({ grid: 7, block: 64, to: to.address + 128, values: [4, 5, 6] })

  const launchInner = (kernel: Kernel, { stream, to }: Given): void => {
    const args: Arguments = [CudaMemory.slice(to, 128), { left: 4, right: 5 }, 6]
    Effect.runSync(CudaKernel.launch(kernel, { grid: 7, block: 64 }, args, stream))
  }

  describe.each(["pair", "other"] as const)("a launch of kernel %s", (kernel) => {
    it.live.each(places)(
      "from %s never mixes with the one that it is read for",
      ([, launch]) =>
        withGiven((given) =>
          Effect.gen(function*() {
            let times = 0
            const exit = yield* Effect.exit(launch(() => {
              if (times++ === 0) launchInner(given[kernel], given)
            }, given))
            yield* CudaStream.synchronize(given.stream)
            const expected = Exit.isSuccess(exit) ? [inner(given), outer(given)] : [inner(given)]
            assert.deepStrictEqual(yield* given.launches, expected)
            const again = launch(() => launchInner(given[kernel], given), given)
            if (Exit.isFailure(exit)) yield* refuses(again, "arguments")
          })
        )
    )
  })

  it.live.each(places)(
    "a question about occupancy from %s does not change the launch",
    ([, launch]) =>
      withGiven((given) =>
        Effect.gen(function*() {
          const ask = () => void Effect.runSync(CudaKernel.activeBlocks(given.other, { block: 64 }))
          const exit = yield* Effect.exit(launch(ask, given))
          yield* CudaStream.synchronize(given.stream)
          assert.deepStrictEqual(yield* given.launches, Exit.isSuccess(exit) ? [outer(given)] : [])
        })
      )
  )

  it.live.each(places)(
    "releasing the memory and the stream from %s launches nothing",
    ([, launch]) =>
      withGiven((given) =>
        Effect.gen(function*() {
          const error = yield* Effect.flip(launch(given.release, given))
          assert.propertyVal(error, "_tag", "CudaError")
          assert.deepStrictEqual(yield* given.launches, [])
        })
      )
  )

  it.live("memory that is given away while the launch is read is not used", () =>
    withGiven((given) =>
      Effect.gen(function*() {
        const { pair, stream } = given
        const host = yield* CudaMemory.allocateHost(4096)
        const slice = {
          buffer: host,
          offset: 0,
          get byteLength() {
            giveAway(host.bytes.buffer)
            return 64
          }
        }
        yield* refuses(
          CudaKernel.launch(pair, { grid: 2, block: 32 }, [slice, { left: 1, right: 2 }, 3], stream),
          "buffer"
        )
        yield* refuses(
          CudaKernel.launch(pair, { grid: 2, block: 32 }, [host, { left: 1, right: 2 }, 3], stream),
          "buffer"
        )
        assert.deepStrictEqual(yield* given.launches, [])
      })
    ))

  it.live("unloading the module while a question about occupancy is read asks nothing", () =>
    withGiven(() =>
      Effect.gen(function*() {
        for (const ask of [CudaKernel.maxClusterSize, CudaKernel.activeClusters]) {
          const scope = yield* Scope.make()
          const module = yield* Scope.provide(CudaModule.load(yield* program), scope)
          const kernel = yield* CudaKernel.get(module, "pair", parameters)
          const config = {
            get grid() {
              Effect.runSync(Scope.close(scope, Exit.void))
              return 2
            },
            block: 32,
            cluster: 2
          }
          yield* failsWith(ask(kernel, config), "ResourceReleased")
        }
      })
    ))

  it.live("a launch succeeds after one that was refused", () =>
    withGiven((given) =>
      Effect.gen(function*() {
        const [, launch] = places[2]!
        yield* Effect.exit(launch(() => launchInner(given.pair, given), given))
        yield* launch(() => {}, given)
        yield* CudaStream.synchronize(given.stream)
        assert.deepStrictEqual((yield* given.launches).at(-1), outer(given))
      })
    ))

  it.live("sizes that are valid only when truncated to 32 bits are refused", () =>
    withGiven(({ pair, stream, to }) =>
      Effect.gen(function*() {
        const beyond = 2 ** 32 + 32
        const args: Arguments = [to, { left: 1, right: 2 }, 3]
        yield* refuses(CudaKernel.bestBlock(pair, { maxThreads: beyond }), "maxThreads")
        yield* refuses(CudaKernel.bestBlock(pair, { sharedBytes: beyond }), "sharedBytes")
        yield* refuses(CudaKernel.activeBlocks(pair, { block: beyond }), "block.x")
        yield* refuses(CudaKernel.activeBlocks(pair, { block: 32, sharedBytes: beyond }), "sharedBytes")
        yield* refuses(CudaKernel.setAttribute(pair, "maxDynamicSharedSizeBytes", beyond), "value")
        yield* refuses(CudaKernel.launch(pair, { grid: beyond, block: 32 }, args, stream), "grid.x")
        yield* refuses(CudaKernel.launch(pair, { grid: 1, block: beyond }, args, stream), "block.x")
        yield* refuses(
          CudaKernel.launch(pair, { grid: 1, block: 32, sharedBytes: beyond }, args, stream),
          "sharedBytes"
        )
      })
    ))

  it.live("a fourth dimension is refused", () =>
    withGiven(({ pair, stream, to }) =>
      Effect.gen(function*() {
        const four = [1, 1, 1, 2] as unknown as [number, number, number]
        const args: Arguments = [to, { left: 1, right: 2 }, 3]
        const launch = (config: CudaKernel.LaunchConfig) => CudaKernel.launch(pair, config, args, stream)
        yield* refuses(launch({ grid: four, block: 1 }), "grid.x")
        yield* refuses(launch({ grid: 1, block: four }), "block.x")
        const clustered = { grid: 1, block: 1, cluster: four }
        yield* refuses(CudaKernel.maxClusterSize(pair, clustered), "cluster.x")
        yield* refuses(CudaKernel.activeClusters(pair, clustered), "cluster.x")
        yield* refuses(launch(clustered), "cluster.x")
        yield* refuses(launch({ grid: [], block: 1 } as never), "grid.x")
      })
    ))
})
