/**
 * Kernels of simulated devices: looked up by name among the runtime's options, and launched as work that calls their functions.
 */
import type { KernelAttribute } from "../../cuda/flags.ts"
import { nullHandle } from "../../cuda/handles.ts"
import type { HostPointer } from "../../cuda/handles.ts"
import { statuses, success } from "../../cuda/status.ts"
import type { BlockSuggestion } from "../CudaRuntime.ts"
import type { RecordedShape } from "../shared/graphNodes.ts"
import type { KernelBackend } from "../shared/kernels.ts"
import type { LaunchShape } from "../shared/launchShape.ts"
import type { KernelCode, KernelResource, ModuleResource } from "../shared/moduleResources.ts"
import type { PartitionResource, StreamResource } from "../shared/resources.ts"
import type { AddressSpace } from "./addressSpace.ts"
import type { SimulatedDriver } from "./Driver.ts"
import { SimulatedCode, simulatedCode } from "./kernelCode.ts"
import { costOf, decodeAll, launchOf } from "./kernelFunctions.ts"
import type { PackedArguments, SimulatedKernel, SimulatedLaunch } from "./kernelFunctions.ts"
import type { ModelWork } from "./model/Model.ts"
import type { SimulatedModules } from "./modules.ts"
import { describeSymbols } from "./modules.ts"
import type { Multiprocessor } from "./occupancy.ts"
import { activeBlocks, activeClusters, bestBlock, largestCluster, multiprocessorOf, refuseLaunch } from "./occupancy.ts"
import { KernelFault, Pointer } from "./pointers.ts"
import { memoryPart, streamPart } from "./resources.ts"

export class SimulatedKernels implements KernelBackend {
  code: KernelCode | undefined
  value = 0
  blockSuggestion: BlockSuggestion = { block: 0, minGrid: 0 }
  /** The work made by `prepare`. */
  prepared: ModelWork = { duration: 0 }
  readonly #driver: SimulatedDriver
  readonly #addresses: AddressSpace
  readonly #modules: SimulatedModules

  constructor(driver: SimulatedDriver, addresses: AddressSpace, modules: SimulatedModules) {
    this.#driver = driver
    this.#addresses = addresses
    this.#modules = modules
  }

  find(module: ModuleResource, name: string): number {
    const status = this.#driver.begin("cuLibraryGetKernel", this.#driver.device(0))
    if (status !== success) return status
    const kernel = this.#driver.options.kernels.get(name)
    if (kernel === undefined) {
      this.#driver.missing = describeSymbols("kernels", [...this.#driver.options.kernels.keys()])
      return statuses.NotFound.code
    }
    this.code = new SimulatedCode(module, this.#driver.model.makeHandle(), name, kernel)
    return success
  }

  load(_: KernelCode, deviceIndex: number): number {
    return this.#driver.begin("cuKernelGetFunction", this.#driver.device(deviceIndex))
  }

  attribute(code: KernelCode, attribute: KernelAttribute, deviceIndex: number): number {
    this.#driver.call = "cuKernelGetAttribute"
    this.value = simulatedCode(code).attribute(attribute, deviceIndex)
    return success
  }

  setAttribute(code: KernelCode, attribute: KernelAttribute, value: number, deviceIndex: number): number {
    this.#driver.call = "cuKernelSetAttribute"
    simulatedCode(code).setAttribute(attribute, value, deviceIndex)
    return success
  }

  activeBlocks(code: KernelCode, threads: number, sharedBytes: number, deviceIndex: number): number {
    const status = this.#driver.begin("cuOccupancyMaxActiveBlocksPerMultiprocessor", this.#driver.device(deviceIndex))
    this.value = activeBlocks(this.#multiprocessor(deviceIndex), simulatedCode(code), deviceIndex, threads, sharedBytes)
    return status
  }

  bestBlock(
    code: KernelCode,
    sharedBytes: number,
    maxThreads: number,
    deviceIndex: number,
    partition: PartitionResource | undefined
  ): number {
    const status = this.#driver.begin("cuOccupancyMaxPotentialBlockSize", this.#driver.device(deviceIndex))
    const multiprocessor = this.#multiprocessor(deviceIndex, partition)
    this.blockSuggestion = bestBlock(multiprocessor, simulatedCode(code), deviceIndex, sharedBytes, maxThreads)
    return status
  }

  activeClusters(
    code: KernelCode,
    shape: LaunchShape,
    deviceIndex: number,
    partition: PartitionResource | undefined
  ): number {
    const status = this.#driver.begin("cuOccupancyMaxActiveClusters", this.#driver.device(deviceIndex))
    if (status !== success) return status
    const simulated = simulatedCode(code)
    if (shape.clusterBlocks > largestCluster(simulated, deviceIndex)) return statuses.InvalidClusterSize.code
    this.value = activeClusters(this.#multiprocessor(deviceIndex, partition), simulated, deviceIndex, shape)
    return success
  }

  maxCluster(code: KernelCode, _: LaunchShape, deviceIndex: number): number {
    this.value = largestCluster(simulatedCode(code), deviceIndex)
    return this.#driver.begin("cuOccupancyMaxPotentialClusterSize", this.#driver.device(deviceIndex))
  }

  #multiprocessor(deviceIndex: number, partition?: PartitionResource): Multiprocessor {
    const multiprocessor = multiprocessorOf(this.#driver.options.devices[deviceIndex]!.attributes)
    return partition === undefined ? multiprocessor : { ...multiprocessor, count: partition.multiprocessors }
  }

  /** Unused: a launch decodes its arguments directly. */
  argumentTable(): HostPointer {
    return nullHandle()
  }

  launch(kernel: KernelResource, shape: LaunchShape, stream: StreamResource): number {
    const part = streamPart(stream)
    const status = this.#driver.begin("cuLaunchKernelEx", part.device)
    if (status !== success) return status
    const refused = this.refuse(kernel.code, shape, stream.deviceIndex, stream.partition) ||
      this.prepare(kernel, shape, kernel.arguments, stream.deviceIndex)
    if (refused !== success) return refused
    this.#driver.model.work(part, this.prepared)
    return success
  }

  /** The status of a launch that exceeds the resources of the device; 0 for one that fits. */
  refuse(code: KernelCode, shape: LaunchShape, deviceIndex: number, partition?: PartitionResource): number {
    return refuseLaunch(this.#multiprocessor(deviceIndex, partition), simulatedCode(code), deviceIndex, shape)
  }

  /** Makes the work of a launch: decodes its arguments, and computes its cost. */
  prepare(kernel: KernelResource, shape: RecordedShape, packed: PackedArguments, deviceIndex: number): number {
    const { kernel: definition } = simulatedCode(kernel.code)
    const isThere = packed.pointers.every(({ memory }) => memory === undefined || memoryPart(memory).tryTouch())
    if (!isThere) return statuses.OutOfMemory.code
    const args = decodeAll(
      definition.parameters,
      packed,
      (address, origin) => this.#addresses.at(address, origin)
    )
    const launch = launchOf(args, shape, deviceIndex, (name) => this.#variable(kernel.module, name, deviceIndex))
    const duration = this.#costOf(kernel, definition, launch)
    if (duration === undefined) return this.#driver.device(deviceIndex).lost
    const act = () => this.#driver.runCode(`Kernel ${kernel.name}`, () => definition.run(launch))
    const lead = this.#driver.device(deviceIndex).traits.latencies?.kernel ?? 0
    this.prepared = this.#driver.model.hasData ? { duration, lead, act } : { duration, lead }
    return success
  }

  /** The cost of a launch in nanoseconds; undefined if computing it failed, which destroys the contexts like a failing kernel. */
  #costOf({ name }: KernelResource, definition: SimulatedKernel, launch: SimulatedLaunch): number | undefined {
    let duration: number | undefined
    try {
      this.#driver.runCode(`The cost of kernel ${name}`, () => {
        duration = costOf(definition, launch)
      })
    } catch {
      this.#driver.lose(launch.deviceIndex, statuses.LaunchFailed.code)
    }
    return duration
  }

  #variable(module: ModuleResource, name: string, deviceIndex: number): Pointer {
    const memory = this.#modules.variable(module, name, deviceIndex)
    if (memory === undefined) {
      throw new KernelFault("LaunchFailed", `there is no global variable ${name}. ${this.#modules.describeGlobals()}`)
    }
    return new Pointer(memory.part, 0, memory.byteLength, memory.address, `global variable ${name}`)
  }
}
