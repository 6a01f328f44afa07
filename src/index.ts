/**
 * effect-cuda: orchestrate NVIDIA GPUs with Effect. Exports each module under its own name.
 *
 * @since 0.1.0
 */
export * as CudaBranch from "./CudaBranch.ts"
export * as CudaDependency from "./CudaDependency.ts"
export * as CudaDevice from "./CudaDevice.ts"
export * as CudaError from "./CudaError.ts"
export * as CudaEvent from "./CudaEvent.ts"
export * as CudaGraph from "./CudaGraph.ts"
export * as CudaHealth from "./CudaHealth.ts"
export * as CudaKernel from "./CudaKernel.ts"
export * as CudaMemory from "./CudaMemory.ts"
export * as CudaMemoryPool from "./CudaMemoryPool.ts"
export * as CudaModule from "./CudaModule.ts"
export * as CudaParameter from "./CudaParameter.ts"
export * as CudaPipeline from "./CudaPipeline.ts"
export * as CudaProfiler from "./CudaProfiler.ts"
export * as CudaProgram from "./CudaProgram.ts"
export * as CudaStream from "./CudaStream.ts"
export * as CudaTaskGraph from "./CudaTaskGraph.ts"
export * as CudaTiming from "./CudaTiming.ts"
export * as AutoRuntime from "./layers/AutoRuntime.ts"
export * as CudaMetrics from "./layers/CudaMetrics.ts"
export * as CudaRuntime from "./layers/CudaRuntime.ts"
export * as FaultInjection from "./layers/FaultInjection.ts"
export * as NativeRuntime from "./layers/NativeRuntime.ts"
export * as SimulatedRuntime from "./layers/SimulatedRuntime.ts"
