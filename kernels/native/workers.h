// Threads that help decoders with their lanes: made when first asked for, kept asleep between frames.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#if !defined(_WIN32)
#include <pthread.h>
#include <signal.h>
#include <unistd.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

namespace latentseg {

class Workers {
public:
    // Those of this process: a fork leaves its child without threads, and perhaps with a mutex that nobody will unlock,
    // so the child gets new ones.
    static Workers &get() {
        Workers *workers = instance_.load(std::memory_order_acquire);
        if (workers && workers->process_ == this_process()) return *workers;
        auto *fresh = new Workers;
        if (instance_.compare_exchange_strong(workers, fresh, std::memory_order_acq_rel)) return *fresh;
        delete fresh;
        return *workers;
    }

    // Calls work(worker), which throws nothing and returns when all is done: with worker 0 on this thread, and with
    // 1..helpers on others, as far as they are awake in time. Returns when all calls have.
    template <class Work>
    void run(size_t helpers, const Work &work) {
        static_assert(std::is_nothrow_invocable_v<const Work &, size_t>);
        Job job{[](const void *what, size_t worker) noexcept { (*static_cast<const Work *>(what))(worker); }, &work,
                helpers};
        if (helpers) open(job);
        work(0);
        if (helpers) close(job);
    }

    // Ends the threads; from then on callers work alone. Python calls it at exit.
    static void stop() {
        Workers *workers = instance_.load(std::memory_order_acquire);
        if (!workers || workers->process_ != this_process()) return;
        std::vector<std::thread> threads;
        {
            const std::lock_guard lock(workers->mutex_);
            workers->stopped_ = true;
            threads.swap(workers->threads_);
        }
        workers->wake_.notify_all();
        for (std::thread &thread : threads) thread.join();
    }

private:
    struct Job {
        void (*call)(const void *, size_t) noexcept;
        const void *work;
        size_t wanted, begun = 0, running = 0;
    };

    static long this_process() {
#if defined(_WIN32)
        return 0;
#else
        return static_cast<long>(getpid());
#endif
    }

    void open(Job &job) {
        const std::lock_guard lock(mutex_);
        if (stopped_) return;
        size_t wanted = 0;
        try {
            jobs_.push_back(&job);
            for (const Job *other : jobs_) wanted += other->wanted;
            while (threads_.size() < wanted) start_thread();
        } catch (const std::exception &) {
            // The machine gives no more threads, or no memory for them: those that there are do all of it.
        }
        keep_off_this_cpu();
        for (size_t i = std::min(job.wanted, threads_.size()); i; --i) wake_.notify_one();
    }

    // A thread that wakes on the caller's CPU runs when the caller is done. Linux puts it there, and leaves it there from
    // frame to frame, where it takes the CPUs to share no cache, as in some virtual machines.
    void keep_off_this_cpu() {
#if defined(__linux__)
        cpu_set_t allowed;
        const int cpu = sched_getcpu();
        if (cpu < 0 || cpu >= CPU_SETSIZE || sched_getaffinity(0, sizeof allowed, &allowed)) return;
        CPU_CLR(cpu, &allowed);
        if (!CPU_COUNT(&allowed) || (placed_ == threads_.size() && CPU_EQUAL(&allowed, &cpus_))) return;
        for (std::thread &thread : threads_) pthread_setaffinity_np(thread.native_handle(), sizeof allowed, &allowed);
        cpus_ = allowed;
        placed_ = threads_.size();
#endif
    }

    void close(Job &job) {
        std::unique_lock lock(mutex_);
        std::erase(jobs_, &job);
        // The others are at their last lanes, some 20 us: less than it takes to fall asleep and be woken.
        for (int i = 0; job.running && i < kYields; ++i) {
            lock.unlock();
            std::this_thread::yield();
            lock.lock();
        }
        ended_.wait(lock, [&job] { return !job.running; });
    }

    void start_thread() {
#if !defined(_WIN32)
        // Signals are for the threads of the program.
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        struct Restore {
            const sigset_t &mask;
            ~Restore() { pthread_sigmask(SIG_SETMASK, &mask, nullptr); }
        } restore{before};
#endif
        threads_.emplace_back([this] { serve(); });
    }

    void serve() {
        std::unique_lock lock(mutex_);
        while (!stopped_) {
            const auto found =
                std::find_if(jobs_.begin(), jobs_.end(), [](const Job *job) { return job->begun < job->wanted; });
            if (found == jobs_.end()) {
                wake_.wait(lock);
                continue;
            }
            Job &job = **found;
            const size_t worker = ++job.begun;
            ++job.running;
            lock.unlock();
            job.call(job.work, worker);
            lock.lock();
            // The job is gone as soon as its caller sees this.
            if (!--job.running) ended_.notify_all();
        }
    }

    static constexpr int kYields = 100;
    static inline std::atomic<Workers *> instance_{nullptr};

    const long process_ = this_process();
    std::mutex mutex_;
    std::condition_variable wake_, ended_;
    std::vector<Job *> jobs_;  // of callers that have not come to their own work's end
    std::vector<std::thread> threads_;
    bool stopped_ = false;
#if defined(__linux__)
    cpu_set_t cpus_{};  // that the threads may use
    size_t placed_ = 0;  // how many of them know
#endif
};

}  // namespace latentseg
